//! Uncompressed bytes on their way from the decompressor to the threads that hash and write them.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use bytes::Bytes;
use parking_lot::Mutex;

/// Size of a block: small enough that what one thread puts into it is in the cache for the next.
pub(crate) const BLOCK: usize = 128 << 10;
/// Blocks that wait for a thread.
pub(crate) const QUEUE: usize = 4;
/// Blocks whose memory is kept for others, which saves page faults.
const KEPT: usize = 2 * QUEUE + 2;

type Free = Arc<Mutex<Vec<Vec<u8>>>>;

/// The memory of a block. It is used again after the last thread has dropped it.
struct Block {
    data: Vec<u8>,
    length: usize,
    free: Free,
}

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        self.data.get(..self.length).unwrap_or_default()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let mut free = self.free.lock();
        if free.len() < KEPT {
            free.push(std::mem::take(&mut self.data));
        }
    }
}

/// Fills blocks and sends each to all threads.
pub(crate) struct BlockSender {
    to: Vec<SyncSender<Bytes>>,
    current: Vec<u8>,
    filled: usize,
    free: Free,
}

impl BlockSender {
    pub(crate) fn new(to: Vec<SyncSender<Bytes>>) -> Self {
        Self {
            to,
            current: vec![0; BLOCK],
            filled: 0,
            free: Free::default(),
        }
    }

    /// Adds bytes.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = self.room();
            let length = room.len().min(bytes.len());
            let (now, later) = bytes.split_at(length);
            if let Some(room) = room.get_mut(..length) {
                room.copy_from_slice(now);
            }
            self.add(length)?;
            bytes = later;
        }
        Ok(())
    }

    /// Where the next bytes go; never empty.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        self.current.get_mut(self.filled..).unwrap_or_default()
    }

    /// Records that so many bytes were put there.
    pub(crate) fn add(&mut self, length: usize) -> io::Result<()> {
        self.filled += length;
        if self.filled < self.current.len() {
            return Ok(());
        }
        self.flush()
    }

    /// Sends what is left.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        if self.filled == 0 {
            return Ok(());
        }
        let next = self.free.lock().pop();
        let next = next.unwrap_or_else(|| vec![0; BLOCK]);
        let block = Block {
            data: std::mem::replace(&mut self.current, next),
            length: std::mem::take(&mut self.filled),
            free: Arc::clone(&self.free),
        };
        self.send(Bytes::from_owner(block))
    }

    fn send(&self, block: Bytes) -> io::Result<()> {
        for to in &self.to {
            if to.send(block.clone()).is_err() {
                return Err(io::Error::from(io::ErrorKind::BrokenPipe));
            }
        }
        Ok(())
    }
}
