//! Which requests are in flight, in memory that survives the server.
//!
//! Each worker reads requests into a slot of its own; while it handles one there, the slot is the
//! record of it. A request that is answered later is copied to an entry before the slot is used
//! again. When the server dies, the next one finds here what was under way: to answer it where the kernel
//! cannot send it again (before Linux 6.9), and to notice a request that kills every server that handles
//! it.

pub(crate) mod layout;
mod slot;
mod strikes;

use std::collections::HashMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::{Condvar, Mutex};

use crate::abi::UNIQUE_RESEND;
use crate::error::FuseError;
use crate::shared_memory::SharedMemory;
use layout::{ENTRIES, ENTRY_ROOM, Entry, JournalLayout};
pub(crate) use layout::{SLOT_SIZE, SLOTS};
pub(crate) use slot::Slot;
pub use strikes::ExitKind;
pub(crate) use strikes::Strikes;

const MAGIC: u64 = u64::from_ne_bytes(*b"SOCIjrnl");
/// Changes with [`layout`].
const VERSION: u64 = 1;

/// How often the kernel is asked to send a request again before it is forgotten: one that it does not
/// send was answered, or given up by its caller.
const FORGET_AFTER: u32 = 4;

/// A request whose server died.
#[derive(Debug)]
pub(crate) struct Interrupted {
    /// The request as it was read.
    pub(crate) bytes: Vec<u8>,
    pub(crate) strikes: Strikes,
}

/// The record of requests in flight. One server uses it at a time.
pub struct Journal {
    memory: SharedMemory,
    /// All stores to entries are made under this lock.
    index: Mutex<Index>,
    /// Entries became free, or the journal was [retired](Journal::retire).
    freed: Condvar,
    slots_taken: [AtomicBool; SLOTS],
}

/// Which entries are in use.
#[derive(Default)]
struct Index {
    free: Vec<usize>,
    /// By connection and request id (without [`UNIQUE_RESEND`]).
    used: HashMap<(u64, u64), usize>,
    retired: bool,
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").finish_non_exhaustive()
    }
}

impl Journal {
    /// Creates an empty journal.
    ///
    /// # Errors
    /// If there is no memory or descriptor for it.
    pub fn create() -> Result<Arc<Self>, FuseError> {
        let memory = SharedMemory::create().map_err(FuseError::Journal)?;
        memory.layout().magic.set(MAGIC);
        memory.layout().version.set(VERSION);
        let index = Index {
            free: (0..ENTRIES).rev().collect(),
            ..Index::default()
        };
        Ok(Self::over(memory, index))
    }

    /// Adopts the journal of a server that is gone, for the one server of the root folder. `exit` is how
    /// the old one ended; its own record that it left on purpose takes precedence.
    ///
    /// # Errors
    /// If the descriptor is not that of a journal, or of one of another version.
    pub fn take_over(file: OwnedFd, exit: ExitKind) -> Result<Arc<Self>, FuseError> {
        Self::adopt(SharedMemory::open(file).map_err(FuseError::Journal)?, exit)
    }

    fn adopt(memory: SharedMemory, exit: ExitKind) -> Result<Arc<Self>, FuseError> {
        let layout = memory.layout();
        check_version(layout)?;
        let planned = layout.left_on_purpose.get() == 1;
        let index = recover(layout, if planned { ExitKind::Planned } else { exit });
        layout.left_on_purpose.set(0);
        Ok(Self::over(memory, index))
    }

    /// Checks whether [`Journal::take_over`] would adopt it. Changes nothing, so that the server that uses
    /// it is not disturbed.
    ///
    /// # Errors
    /// If it would not.
    pub fn check(file: OwnedFd) -> Result<(), FuseError> {
        let memory = SharedMemory::open(file).map_err(FuseError::Journal)?;
        check_version(memory.layout())
    }

    fn over(memory: SharedMemory, index: Index) -> Arc<Self> {
        Arc::new(Self {
            memory,
            index: Mutex::new(index),
            freed: Condvar::new(),
            slots_taken: std::array::from_fn(|_| AtomicBool::new(false)),
        })
    }

    /// Another descriptor of the memory, for a holder.
    ///
    /// # Errors
    /// If the process has too many open files.
    pub fn descriptor(&self) -> std::io::Result<OwnedFd> {
        self.memory.descriptor()
    }

    /// Records that the server is about to leave on purpose: no request in flight is to blame.
    pub fn leaving_on_purpose(&self) {
        self.memory.layout().left_on_purpose.set(1);
    }

    /// Number of requests that wait for their server's answer, or for a server.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.index.lock().used.len()
    }

    /// Takes a worker's slot.
    pub(crate) fn slot(self: &Arc<Self>, number: usize) -> Option<Slot> {
        Slot::take(self, number)
    }

    /// Leaves the entries to the next server: this one does not change them from here on.
    pub(crate) fn retire(&self) {
        self.index.lock().retired = true;
        self.freed.notify_all();
    }

    /// Records a request that is answered later. Without room it waits for some if the request `must` be
    /// recorded; otherwise the request is not.
    pub(crate) fn defer(&self, connection: u64, unique: u64, bytes: &[u8], must: bool) {
        if bytes.len() > ENTRY_ROOM {
            return;
        }
        let request = (connection, unique & !UNIQUE_RESEND);
        let mut index = self.index.lock();
        let free = loop {
            if index.retired {
                return;
            }
            // It was in flight before, and has its entry since.
            if let Some(&used) = index.used.get(&request) {
                let entry = self.entry(used);
                entry.age.set(0);
                entry.state.set(Entry::WAITING);
                return;
            }
            // The others are for what is in the slots at a death.
            if index.free.len() > SLOTS
                && let Some(free) = index.free.pop()
            {
                break free;
            }
            if !must {
                return;
            }
            self.freed.wait(&mut index);
        };
        let strikes = Strikes::default();
        self.entry(free)
            .fill(Entry::WAITING, request, strikes, bytes);
        index.used.insert(request, free);
    }

    /// Whether a request has an entry, because it was in flight before.
    pub(crate) fn knows(&self, connection: u64, unique: u64) -> bool {
        let request = (connection, unique & !UNIQUE_RESEND);
        self.index.lock().used.contains_key(&request)
    }

    /// Ends the record of a deferred request: it was answered.
    pub(crate) fn settle(&self, connection: u64, unique: u64) {
        let request = (connection, unique & !UNIQUE_RESEND);
        self.free(|index| index.used.remove(&request).into_iter().collect());
    }

    /// Ends the records of a connection that has ended.
    pub(crate) fn forget_connection(&self, connection: u64) {
        self.free(|index| {
            let gone = |request: &(u64, u64), _: &mut usize| request.0 == connection;
            let gone = index.used.extract_if(gone);
            gone.map(|(_, entry)| entry).collect()
        });
    }

    fn free(&self, take: impl FnOnce(&mut Index) -> Vec<usize>) {
        let mut index = self.index.lock();
        if index.retired {
            return;
        }
        for entry in take(&mut index) {
            self.entry(entry).state.set(Entry::FREE);
            index.free.push(entry);
        }
        // There are as few threads as slots, and they wait only when the journal is full.
        self.freed.notify_all();
    }

    /// The requests of a connection whose server died, oldest id first.
    pub(crate) fn interrupted(&self, connection: u64) -> Vec<Interrupted> {
        let index = self.index.lock();
        let mut found: Vec<_> = self.interrupted_entries(&index, connection).collect();
        found.sort_by_key(|entry| entry.unique.get());
        found.into_iter().map(Entry::interrupted).collect()
    }

    /// Records that the kernel has been asked to send again what this connection's servers left unanswered.
    /// What it never sends is forgotten in the end.
    pub(crate) fn asked_again(&self, connection: u64) {
        let index = self.index.lock();
        for entry in self.interrupted_entries(&index, connection) {
            entry.age.set(entry.age.get().saturating_add(1));
        }
    }

    fn interrupted_entries<'a>(
        &'a self,
        index: &'a Index,
        connection: u64,
    ) -> impl Iterator<Item = &'a Entry> {
        let of_connection = index
            .used
            .iter()
            .filter(move |(key, _)| key.0 == connection);
        of_connection
            .map(|(_, &entry)| self.entry(entry))
            .filter(|entry| entry.state.get() == Entry::INTERRUPTED)
    }

    fn entry(&self, number: usize) -> &Entry {
        &self.memory.layout().entries[number]
    }
}

impl Entry {
    /// Writes an entry; its state last, so that a death in between leaves a free one.
    fn fill(&self, state: u32, request: (u64, u64), strikes: Strikes, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(ENTRY_ROOM)];
        self.age.set(0);
        self.connection.set(request.0);
        self.unique.set(request.1);
        self.set_strikes(strikes);
        self.length.set(u32::try_from(bytes.len()).unwrap_or(0));
        self.bytes.write(bytes);
        self.state.set(state);
    }

    fn interrupted(&self) -> Interrupted {
        let length = usize::try_from(self.length.get()).unwrap_or(0);
        let mut bytes = vec![0; length.min(ENTRY_ROOM)];
        self.bytes.read(&mut bytes);
        Interrupted {
            bytes,
            strikes: self.strikes(),
        }
    }

    fn strikes(&self) -> Strikes {
        Strikes {
            crashes: self.crashes.get(),
            kills: self.kills.get(),
        }
    }

    fn set_strikes(&self, strikes: Strikes) {
        self.crashes.set(strikes.crashes);
        self.kills.set(strikes.kills);
    }
}

fn check_version(layout: &JournalLayout) -> Result<(), FuseError> {
    let version = layout.version.get();
    if (layout.magic.get(), version) == (MAGIC, VERSION) {
        return Ok(());
    }
    Err(FuseError::Journal(std::io::Error::new(
        std::io::ErrorKind::InvalidData,
        format!("it is of version {version}, and {VERSION} is known"),
    )))
}

/// Turns everything that was in flight into interrupted entries with one more strike.
fn recover(layout: &JournalLayout, exit: ExitKind) -> Index {
    let mut index = Index::default();
    for (number, entry) in layout.entries.iter().enumerate() {
        match entry.state.get() {
            Entry::WAITING => entry.set_strikes(entry.strikes().plus(exit)),
            Entry::INTERRUPTED if entry.age.get() < FORGET_AFTER => {}
            state => {
                if state != Entry::FREE {
                    entry.state.set(Entry::FREE);
                }
                index.free.push(number);
                continue;
            }
        }
        entry.state.set(Entry::INTERRUPTED);
        let request = (entry.connection.get(), entry.unique.get());
        if index.used.insert(request, number).is_some() {
            // Only if a recovery was cut short. Both are the same.
            tracing::debug!("a request was in the journal twice");
        }
    }
    for slot::Found {
        connection,
        unique,
        bytes,
    } in slot::left_in_slots(layout)
    {
        let request = (connection, unique);
        // If it was deferred, its entry has counted this death.
        if !index.used.contains_key(&request)
            && let Some(free) = index.free.pop()
        {
            let strikes = Strikes::default().plus(exit);
            layout.entries[free].fill(Entry::INTERRUPTED, request, strikes, &bytes);
            index.used.insert(request, free);
        }
    }
    for slot in &layout.slots {
        slot.clear_length();
    }
    index
}

#[cfg(test)]
mod tests;
