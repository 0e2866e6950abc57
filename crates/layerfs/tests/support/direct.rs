//! A client that speaks to a `LayerFs` in requests and replies, without FUSE.

use std::io::IoSlice;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use soci_fetch::LayerData;
use soci_fuse::{FileSystem, Negotiated, Operation, Reply, ReplySink, Request, init_flags};
use soci_layerfs::{CacheTimes, LayerFs, Tree};

/// Everything negotiated that there is.
pub const NEGOTIATED: Negotiated = Negotiated {
    minor: 40,
    flags: init_flags::NO_OPEN_SUPPORT | init_flags::NO_OPENDIR_SUPPORT,
    max_write: 4096,
    max_readahead: 131_072,
    max_pages: 256,
};

#[derive(Default)]
struct Inbox {
    answers: Mutex<Vec<Vec<u8>>>,
    arrived: Condvar,
}

impl ReplySink for Inbox {
    fn send(&self, _unique: u64, message: &[IoSlice<'_>]) {
        let bytes = message
            .iter()
            .flat_map(|part| part.iter().copied())
            .collect();
        self.answers.lock().push(bytes);
        self.arrived.notify_all();
    }
}

pub struct Direct {
    pub fs: LayerFs,
}

impl Direct {
    pub fn new(tree: Arc<Tree>, data: Arc<dyn LayerData>) -> Self {
        let backing = PathBuf::from("/");
        let times = CacheTimes::FOREVER;
        Self {
            fs: LayerFs::new(tree, data, times, backing, &NEGOTIATED),
        }
    }

    /// Asks; the body of the answer, or its error number. Exactly one answer must come.
    pub fn ask(&self, node: u64, operation: Operation<'_>) -> Result<Vec<u8>, i32> {
        let inbox = Arc::new(Inbox::default());
        let request = Request {
            unique: 77,
            node,
            pid: 1,
            operation,
            bytes: &[],
        };
        self.fs.handle(&request, Reply::new(77, inbox.clone()));
        let mut answers = inbox.answers.lock();
        while answers.is_empty() {
            inbox.arrived.wait(&mut answers);
        }
        assert_eq!(answers.len(), 1);
        let answer = answers.pop().unwrap();
        assert_eq!(u32_at(&answer, 0) as usize, answer.len());
        assert_eq!(u64_at(&answer, 8), 77);
        match i32::from_ne_bytes(answer[4..8].try_into().unwrap()) {
            0 => Ok(answer[16..].to_vec()),
            errno => Err(-errno),
        }
    }

    pub fn lookup(&self, parent: u64, name: &[u8]) -> Option<u64> {
        let entry = self.ask(parent, Operation::Lookup { name }).ok()?;
        Some(u64_at(&entry, 0)).filter(|ino| *ino != 0)
    }

    /// All entries of a directory, in answers of `room` bytes.
    pub fn list(&self, node: u64, room: u32, plus: bool) -> Vec<(Vec<u8>, u64)> {
        let (mut entries, mut offset) = (Vec::new(), 0);
        loop {
            let size = room;
            let read = Operation::ReadDir { offset, size, plus };
            let mut bytes = self.ask(node, read).unwrap();
            if bytes.is_empty() {
                return entries;
            }
            while !bytes.is_empty() {
                let head = if plus { 128 } else { 0 };
                let length = u32_at(&bytes, head + 16) as usize;
                let name = bytes[head + 24..head + 24 + length].to_vec();
                entries.push((name, u64_at(&bytes, head)));
                offset = u64_at(&bytes, head + 8);
                bytes.drain(..(head + 24 + length).next_multiple_of(8));
            }
        }
    }

    pub fn read(&self, node: u64, offset: u64, size: u32) -> Result<Vec<u8>, i32> {
        self.ask(node, Operation::Read { offset, size })
    }
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}
