//! Which requests are in flight, in memory that survives the server.
//!
//! Each worker reads requests into a slot of its own; while it handles one there, the slot is the
//! record of it. A request that is answered later is copied to an entry before the slot is used
//! again. When the server dies, its successor finds here what was under way: to have it answered where
//! the kernel cannot send it again (before Linux 6.9), and to notice a request that kills every
//! server that handles it.
//!
//! The layout is native-endian, for processes of one machine and boot:
//!
//! | offset | what |
//! |---|---|
//! | 0 | magic, version (`u64` each); 1 if the last server left on purpose (`u32`) |
//! | 4096 + 64 × slot | connection (`u64`) of the request in the slot |
//! | 8192 + 512 × entry | state, age (`u32`), connection, request id (`u64`), crashes, kills, length (`u32`), then from 40 on the request |
//! | windows | the slots, 16 KiB each; a request begins with its own length (`struct fuse_in_header`), 0: none |

use std::collections::HashMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use parking_lot::{Condvar, Mutex};
use zerocopy::FromBytes;

use crate::abi::{InHeader, UNIQUE_RESEND, opcode};
use crate::error::FuseError;
use crate::shared_memory::{Division, SharedMemory, Window};

const MAGIC: u64 = u64::from_ne_bytes(*b"SOCIjrnl");
/// Changes with the layout.
const VERSION: u64 = 1;
const LEFT_ON_PURPOSE: usize = 16;

/// Workers at most.
pub(crate) const SLOTS: usize = 16;
/// Bytes of a slot. The kernel refuses to read a request into less than 8192 bytes
/// (`FUSE_MIN_READ_BUFFER`); the largest request of a read-only mount is a page of forgets.
pub(crate) const SLOT_SIZE: usize = 16 << 10;
const SLOT_FACTS: usize = 4096;
const SLOT_FACTS_SIZE: usize = 64;

const ENTRIES: usize = 1024;
const ENTRY: usize = 8192;
const ENTRY_SIZE: usize = 512;
const ENTRY_BYTES: usize = 40;
/// Longest request that can be answered later: a name has at most 255 bytes.
const ENTRY_ROOM: usize = ENTRY_SIZE - ENTRY_BYTES;

const FREE: u32 = 0;
/// A server is about to answer it.
const WAITING: u32 = 1;
/// The server that was about to answer it is dead.
const INTERRUPTED: u32 = 2;

/// A request that the kernel did not send again when it was asked to, so many times, was answered, or
/// given up by its caller.
const FORGET_AFTER: u32 = 4;

const DIVISION: Division = Division {
    front: ENTRY + ENTRIES * ENTRY_SIZE,
    windows: SLOTS,
    window: SLOT_SIZE,
};

/// How the previous server ended, as far as it tells something about the requests in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// It was asked to.
    Planned,
    /// SIGKILL: by somebody, or because memory was short. Nothing a request has to answer for, unless
    /// it happens again and again.
    Killed,
    /// By itself: another signal, an abort, an exit nobody asked for.
    Crashed,
}

/// How often a request was in flight when a server died.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Deaths {
    pub(crate) crashes: u32,
    pub(crate) kills: u32,
}

impl Deaths {
    /// Deaths by crash after which a request is given up.
    const MOST_CRASHES: u32 = 2;
    /// The same for servers that were killed: on a machine where a load of requests waits for a slow
    /// registry, some are in flight whenever somebody kills the server.
    const MOST_KILLS: u32 = 8;

    /// Whether it must not be handed to another server.
    pub(crate) const fn too_many(self) -> bool {
        self.crashes >= Self::MOST_CRASHES || self.kills >= Self::MOST_KILLS
    }

    fn plus(mut self, death: Death) -> Self {
        match death {
            Death::Planned => {}
            Death::Killed => self.kills = self.kills.saturating_add(1),
            Death::Crashed => self.crashes = self.crashes.saturating_add(1),
        }
        self
    }
}

/// A request whose server died.
#[derive(Debug)]
pub(crate) struct Interrupted {
    /// The request as it was read.
    pub(crate) bytes: Vec<u8>,
    pub(crate) deaths: Deaths,
}

/// The record of requests in flight. One server uses it at a time.
pub struct Journal {
    memory: Arc<SharedMemory>,
    entries: Mutex<Entries>,
    freed: Condvar,
}

#[derive(Default)]
struct Entries {
    free: Vec<usize>,
    /// By connection and request id (without [`UNIQUE_RESEND`]).
    used: HashMap<(u64, u64), usize>,
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").finish_non_exhaustive()
    }
}

impl Journal {
    /// A new, empty journal.
    ///
    /// # Errors
    /// If there is no memory or descriptor for it.
    pub fn create() -> Result<Arc<Self>, FuseError> {
        let memory = SharedMemory::create("soci-requests", DIVISION).map_err(FuseError::Journal)?;
        let journal = Self::over(memory);
        journal.set_u64(0, MAGIC);
        journal.set_u64(8, VERSION);
        journal.entries.lock().free = (0..ENTRIES).rev().collect();
        Ok(Arc::new(journal))
    }

    /// Takes the journal of a server that is gone. `death` says how it ended; what is recorded by the
    /// server itself, that it left on purpose, goes first.
    ///
    /// # Errors
    /// If the descriptor is not that of a journal, or of one of another version.
    pub fn take_over(file: OwnedFd, death: Death) -> Result<Arc<Self>, FuseError> {
        let memory = SharedMemory::open(file, DIVISION).map_err(FuseError::Journal)?;
        let journal = Self::over(memory);
        journal.check_version()?;
        let planned = journal.u32(LEFT_ON_PURPOSE) == 1;
        journal.recover(if planned { Death::Planned } else { death });
        journal.set_u32(LEFT_ON_PURPOSE, 0);
        Ok(Arc::new(journal))
    }

    /// Whether [`Journal::take_over`] would understand it. Changes nothing.
    ///
    /// # Errors
    /// If it would not.
    pub fn check(file: OwnedFd) -> Result<(), FuseError> {
        let memory = SharedMemory::open(file, DIVISION).map_err(FuseError::Journal)?;
        Self::over(memory).check_version()
    }

    fn check_version(&self) -> Result<(), FuseError> {
        let found = (self.u64(0), self.u64(8));
        if found == (MAGIC, VERSION) {
            return Ok(());
        }
        Err(FuseError::Journal(std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            format!("it is of version {}, and {VERSION} is known", found.1),
        )))
    }

    fn over(memory: Arc<SharedMemory>) -> Self {
        Self {
            memory,
            entries: Mutex::default(),
            freed: Condvar::new(),
        }
    }

    /// The memory, for a holder to keep.
    ///
    /// # Errors
    /// If the process has too many open files.
    pub fn descriptor(&self) -> std::io::Result<OwnedFd> {
        self.memory.file().try_clone_to_owned()
    }

    /// The server is about to leave on purpose: what is in flight is not to blame.
    pub fn leaving_on_purpose(&self) {
        self.set_u32(LEFT_ON_PURPOSE, 1);
    }

    /// How many requests wait for their server's answer, or for a server.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.entries.lock().used.len()
    }

    /// Turns everything that was in flight into interrupted entries, one death older.
    fn recover(&self, death: Death) {
        let mut entries = self.entries.lock();
        for entry in 0..ENTRIES {
            let at = ENTRY + entry * ENTRY_SIZE;
            match self.u32(at) {
                WAITING => self.set_deaths(at + 24, self.deaths(at + 24).plus(death)),
                INTERRUPTED if self.u32(at + 4) < FORGET_AFTER => {}
                _ => {
                    self.set_u32(at, FREE);
                    entries.free.push(entry);
                    continue;
                }
            }
            self.set_u32(at, INTERRUPTED);
            let request = (self.u64(at + 8), self.u64(at + 16));
            if entries.used.insert(request, entry).is_some() {
                // The server died between copying it and clearing the first copy. Both are the same.
                tracing::debug!("a request was in the journal twice");
            }
        }
        for slot in 0..SLOTS {
            let Some(mut window) = self.memory.window(slot) else {
                continue;
            };
            let facts = SLOT_FACTS + slot * SLOT_FACTS_SIZE;
            let bytes = window.as_mut_slice();
            if let Some((unique, request)) = request_in(bytes) {
                let connection = self.u64(facts);
                // If it was deferred, its entry has counted this death.
                if !entries.used.contains_key(&(connection, unique))
                    && let Some(entry) = entries.free.pop()
                {
                    let deaths = Deaths::default().plus(death);
                    self.fill(entry, INTERRUPTED, connection, unique, deaths, request);
                    entries.used.insert((connection, unique), entry);
                }
            }
            clear_length(bytes);
        }
    }

    /// Takes a worker's slot.
    pub(crate) fn slot(self: &Arc<Self>, number: usize) -> Option<Slot> {
        let window = self.memory.window(number)?;
        Some(Slot {
            journal: self.clone(),
            window,
            facts: SLOT_FACTS + number * SLOT_FACTS_SIZE,
        })
    }

    /// Records a request that is answered later. If there is no room, waits for it when `must` says
    /// so, else does without.
    pub(crate) fn defer(&self, connection: u64, unique: u64, bytes: &[u8], must: bool) {
        if bytes.len() > ENTRY_ROOM {
            return;
        }
        let request = (connection, unique & !UNIQUE_RESEND);
        let mut entries = self.entries.lock();
        let entry = loop {
            // It was in flight before, and has its entry since.
            if let Some(&entry) = entries.used.get(&request) {
                self.set_u32(ENTRY + entry * ENTRY_SIZE + 4, 0);
                self.state(entry).store(WAITING, Release);
                return;
            }
            // The others are for what is in the slots at a death.
            if entries.free.len() > SLOTS
                && let Some(entry) = entries.free.pop()
            {
                break entry;
            }
            if !must {
                return;
            }
            self.freed.wait(&mut entries);
        };
        self.fill(
            entry,
            WAITING,
            request.0,
            request.1,
            Deaths::default(),
            bytes,
        );
        entries.used.insert(request, entry);
    }

    /// Whether a request has an entry, because it was in flight before.
    pub(crate) fn knows(&self, connection: u64, unique: u64) -> bool {
        let entries = self.entries.lock();
        entries
            .used
            .contains_key(&(connection, unique & !UNIQUE_RESEND))
    }

    /// A deferred request has its answer.
    pub(crate) fn settle(&self, connection: u64, unique: u64) {
        let mut entries = self.entries.lock();
        if let Some(entry) = entries.used.remove(&(connection, unique & !UNIQUE_RESEND)) {
            self.state(entry).store(FREE, Release);
            entries.free.push(entry);
            self.freed.notify_one();
        }
    }

    /// Nothing of this connection is in flight any more: it ended.
    pub(crate) fn forget_connection(&self, connection: u64) {
        let mut entries = self.entries.lock();
        let gone: Vec<_> = entries
            .used
            .extract_if(|request, _| request.0 == connection)
            .map(|(_, entry)| entry)
            .collect();
        for &entry in &gone {
            self.state(entry).store(FREE, Release);
        }
        if !gone.is_empty() {
            entries.free.extend(gone);
            self.freed.notify_all();
        }
    }

    /// The requests of a connection whose server died, oldest id first.
    pub(crate) fn interrupted(&self, connection: u64) -> Vec<Interrupted> {
        let entries = self.entries.lock();
        let mut found: Vec<_> = entries
            .used
            .iter()
            .filter(|(request, entry)| {
                request.0 == connection && self.state(**entry).load(Acquire) == INTERRUPTED
            })
            .map(|(request, &entry)| {
                let at = ENTRY + entry * ENTRY_SIZE;
                let length = usize::try_from(self.u32(at + 32)).unwrap_or(0);
                let bytes = self.memory.read(at + ENTRY_BYTES, length.min(ENTRY_ROOM));
                let deaths = self.deaths(at + 24);
                (request.1, Interrupted { bytes, deaths })
            })
            .collect();
        found.sort_by_key(|(unique, _)| *unique);
        found.into_iter().map(|(_, request)| request).collect()
    }

    /// The kernel has been asked to send again what this connection's servers left unanswered. What it never
    /// sends is forgotten in the end.
    pub(crate) fn asked_again(&self, connection: u64) {
        let entries = self.entries.lock();
        for (request, &entry) in &entries.used {
            let at = ENTRY + entry * ENTRY_SIZE;
            if request.0 == connection && self.u32(at) == INTERRUPTED {
                self.set_u32(at + 4, self.u32(at + 4).saturating_add(1));
            }
        }
    }

    /// Writes an entry; its state last, so that a death in between leaves a free one.
    fn fill(
        &self,
        entry: usize,
        state: u32,
        connection: u64,
        unique: u64,
        deaths: Deaths,
        bytes: &[u8],
    ) {
        let at = ENTRY + entry * ENTRY_SIZE;
        let bytes = bytes.get(..bytes.len().min(ENTRY_ROOM)).unwrap_or_default();
        self.set_u32(at + 4, 0);
        self.set_u64(at + 8, connection);
        self.set_u64(at + 16, unique);
        self.set_deaths(at + 24, deaths);
        self.set_u32(at + 32, u32::try_from(bytes.len()).unwrap_or(0));
        self.memory.write(at + ENTRY_BYTES, bytes);
        self.state(entry).store(state, Release);
    }

    fn state(&self, entry: usize) -> &std::sync::atomic::AtomicU32 {
        static OUTSIDE: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(FREE);
        let at = ENTRY + entry * ENTRY_SIZE;
        // Entries lie in the front, so that the other case does not happen.
        self.memory.u32_at(at).unwrap_or(&OUTSIDE)
    }

    fn deaths(&self, at: usize) -> Deaths {
        Deaths {
            crashes: self.u32(at),
            kills: self.u32(at + 4),
        }
    }

    fn set_deaths(&self, at: usize, deaths: Deaths) {
        self.set_u32(at, deaths.crashes);
        self.set_u32(at + 4, deaths.kills);
    }

    fn u32(&self, at: usize) -> u32 {
        self.memory
            .u32_at(at)
            .map_or(0, |number| number.load(Acquire))
    }

    fn set_u32(&self, at: usize, value: u32) {
        if let Some(number) = self.memory.u32_at(at) {
            number.store(value, Release);
        }
    }

    fn u64(&self, at: usize) -> u64 {
        self.memory
            .u64_at(at)
            .map_or(0, |number| number.load(Acquire))
    }

    fn set_u64(&self, at: usize, value: u64) {
        if let Some(number) = self.memory.u64_at(at) {
            number.store(value, Release);
        }
    }
}

/// The memory that one worker reads requests into.
pub(crate) struct Slot {
    journal: Arc<Journal>,
    window: Window,
    facts: usize,
}

impl Slot {
    /// Empty memory for the next request of a connection.
    pub(crate) fn empty(&mut self, connection: u64) -> &mut [u8] {
        if let Some(place) = self.journal.memory.u64_at(self.facts) {
            place.store(connection, Relaxed);
        }
        let bytes = self.window.as_mut_slice();
        clear_length(bytes);
        bytes
    }

    /// The first `length` bytes: the request that was read.
    pub(crate) fn filled(&mut self, length: usize) -> &[u8] {
        let bytes: &[u8] = self.window.as_mut_slice();
        bytes.get(..length).unwrap_or_default()
    }

    /// The request was answered, or has an entry of its own.
    pub(crate) fn done(&mut self) {
        clear_length(self.window.as_mut_slice());
    }
}

/// A request begins with its length, so that 0 there means that there is none.
fn clear_length(bytes: &mut [u8]) {
    if let Some(length) = bytes.first_chunk_mut::<4>() {
        *length = [0; 4];
        // The compiler must not move this past the read(2) or the answer that follows.
        std::sync::atomic::compiler_fence(Release);
    }
}

/// The request that a dead worker had in its slot, with its id, if somebody waits for its answer.
fn request_in(slot: &[u8]) -> Option<(u64, &[u8])> {
    let (header, _) = InHeader::read_from_prefix(slot).ok()?;
    let length = usize::try_from(header.len).ok()?;
    let wanted = !matches!(
        header.opcode,
        opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT | opcode::DESTROY
    );
    let request = slot
        .get(..length)
        .filter(|_| wanted && length >= size_of::<InHeader>())?;
    Some((header.unique & !UNIQUE_RESEND, request))
}

#[cfg(test)]
mod tests;
