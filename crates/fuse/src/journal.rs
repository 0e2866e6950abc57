//! Which requests are in flight, in memory that survives the server.
//!
//! Each worker reads requests into a slot of its own; while it handles one there, the slot is the
//! record of it. A request that is answered later is copied to an entry before the slot is used
//! again. When the server dies, the next one finds here what was under way: to answer it where the kernel
//! cannot send it again (before Linux 6.9), and to notice a request that kills every server that handles
//! it.
//!
//! No caller waits for an entry: a connection that has its share, or any when all are in use, gets the
//! rest of its requests recorded by their ids alone. After a death of the server those are answered EIO.

mod entry;
mod index;
pub(crate) mod layout;
mod numbered;
mod recovery;
mod slot;
mod slot_records;
mod strikes;

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use crate::abi::UNIQUE_RESEND;
use crate::error::FuseError;
use crate::shared_memory::{Extent, SharedMemory};
pub(crate) use entry::Interrupted;
use index::{Index, RequestKey, raise};
use layout::{ENTRY_ROOM, Entry};
pub(crate) use layout::{SLOT_SIZE, SLOTS};
pub(crate) use slot::Slot;
pub use strikes::ExitKind;
pub(crate) use strikes::Strikes;

/// A connection has at most this part of the entries.
const SHARE: usize = 8;
/// But so many at least: the journal of an earlier version is small.
const SMALLEST_SHARE: usize = 512;

/// Time between two lines of the log about requests that were not recorded.
const LOG_PERIOD: Duration = Duration::from_secs(60);

/// The record of requests in flight. One server uses it at a time.
pub struct Journal {
    memory: SharedMemory,
    /// All stores to entries are made under this lock, which is held for a copy of a request at most.
    index: Mutex<Index>,
    unrecorded: AtomicU64,
    logged_at: Mutex<Option<Instant>>,
    slots_taken: [AtomicBool; SLOTS],
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
        let memory = SharedMemory::create(Extent::Whole).map_err(FuseError::Journal)?;
        recovery::begin(&memory);
        let index = Index::new(&memory);
        Ok(Self::over(memory, index))
    }

    /// Adopts the journal of a server that is gone, for the one server of the root folder. `exit` is how
    /// the old one ended; its own record that it left on purpose takes precedence.
    ///
    /// A journal of the version before is used as it is: the server that left it may have to resume.
    ///
    /// # Errors
    /// If the descriptor is not that of a journal, or of one of another version.
    pub fn take_over(file: OwnedFd, exit: ExitKind) -> Result<Arc<Self>, FuseError> {
        Self::adopt(SharedMemory::open(file).map_err(FuseError::Journal)?, exit)
    }

    fn adopt(memory: SharedMemory, exit: ExitKind) -> Result<Arc<Self>, FuseError> {
        recovery::check_version(&memory)?;
        let layout = memory.layout();
        let planned = layout.left_on_purpose.get() == 1;
        let index = recovery::recover(&memory, if planned { ExitKind::Planned } else { exit });
        layout.left_on_purpose.set(0);
        Ok(Self::over(memory, index))
    }

    /// Returns this journal in the current version's format, which has room for more requests. Servers of
    /// the version before cannot adopt that.
    ///
    /// # Errors
    /// If there is no memory or descriptor for it.
    pub fn in_current_format(self: Arc<Self>) -> Result<Arc<Self>, FuseError> {
        if self.memory.extent() == Extent::Whole {
            return Ok(self);
        }
        let memory = recovery::converted(&self.memory).map_err(FuseError::Journal)?;
        Self::adopt(memory, ExitKind::Planned)
    }

    /// Checks whether [`Journal::take_over`] would adopt it. Changes nothing, so that the server that uses
    /// it is not disturbed.
    ///
    /// # Errors
    /// If it would not.
    pub fn check(file: OwnedFd) -> Result<(), FuseError> {
        recovery::check_version(&SharedMemory::open(file).map_err(FuseError::Journal)?)
    }

    fn over(memory: SharedMemory, index: Index) -> Arc<Self> {
        Arc::new(Self {
            memory,
            index: Mutex::new(index),
            unrecorded: AtomicU64::new(0),
            logged_at: Mutex::default(),
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
        let index = self.index();
        index.entries.len() + index.unrecorded.len()
    }

    /// Number of requests since the start that were deferred without an entry, although the kernel cannot
    /// send them again.
    #[must_use]
    pub fn unrecorded(&self) -> u64 {
        self.unrecorded.load(Ordering::Relaxed)
    }

    /// Takes a worker's slot.
    pub(crate) fn slot(self: &Arc<Self>, number: usize) -> Option<Slot> {
        Slot::take(self, number)
    }

    /// Whether a worker handles this request: it is in a slot.
    pub(crate) fn is_handling(&self, connection: u64, unique: u64) -> bool {
        slot_records::contains(self.memory.layout(), connection, unique & !UNIQUE_RESEND)
    }

    /// Leaves the entries to the next server: this one does not change them from here on.
    pub(crate) fn retire(&self) {
        self.index().retired = true;
    }

    /// Records a request that is answered later. Without room, and if the kernel cannot send it again
    /// (`can_resend`), its id alone is recorded. Never waits.
    pub(crate) fn defer(&self, connection: u64, unique: u64, bytes: &[u8], can_resend: bool) {
        let request = (connection, unique & !UNIQUE_RESEND);
        let mut index = self.index();
        if index.retired {
            return;
        }
        // It was in flight before, and has its entry since.
        if let Some(used) = index.entries.get(request) {
            let entry = self.entry(used);
            entry.age.set(0);
            entry.state.set(Entry::WAITING);
            return;
        }
        let share = (numbered::entries(&self.memory) / SHARE).max(SMALLEST_SHARE);
        // The last ones are for what is in the slots at a death.
        let has_room = index.entries.left() > SLOTS
            && index.shares.of(connection) < share
            && bytes.len() <= ENTRY_ROOM;
        let free = has_room.then(|| index.take_entry(&self.memory, request));
        if let Some(free) = free.flatten() {
            let strikes = Strikes::default();
            self.entry(free)
                .fill(Entry::WAITING, request, strikes, bytes);
            index.shares.add(connection);
        } else if !can_resend {
            self.record_id(&mut index, request);
            drop(index);
            self.count_unrecorded();
        }
    }

    fn record_id(&self, index: &mut Index, request: RequestKey) {
        let Some(extension) = self.memory.extension() else {
            return;
        };
        if index.unrecorded.get(request).is_some() {
            return;
        }
        if let Some(number) = index.unrecorded.take(request) {
            raise(&self.memory.layout().unrecorded_used, number + 1);
            let id = &extension.unrecorded[number];
            id.connection.set(request.0);
            id.unique.set(request.1);
        }
    }

    fn count_unrecorded(&self) {
        let total = self.unrecorded.fetch_add(1, Ordering::Relaxed) + 1;
        let mut logged_at = self.logged_at.lock();
        if logged_at.is_none_or(|at| at.elapsed() >= LOG_PERIOD) {
            *logged_at = Some(Instant::now());
            drop(logged_at);
            tracing::warn!(
                total,
                "more FUSE requests wait than the journal has room for; if the server died now, the rest \
                 would be answered EIO"
            );
        }
    }

    /// Whether a request has an entry, because it was in flight before.
    pub(crate) fn knows(&self, connection: u64, unique: u64) -> bool {
        let request = (connection, unique & !UNIQUE_RESEND);
        self.index().entries.get(request).is_some()
    }

    /// Ends the record of a deferred request: it was answered.
    pub(crate) fn settle(&self, connection: u64, unique: u64) {
        let request = (connection, unique & !UNIQUE_RESEND);
        let mut index = self.index();
        if index.retired {
            return;
        }
        if let Some(entry) = index.entries.free(request) {
            self.entry(entry).state.set(Entry::FREE);
            index.shares.subtract(connection, 1);
        } else if let Some(number) = index.unrecorded.free(request) {
            self.clear_id(number);
        }
    }

    /// Ends the records of a connection that has ended.
    pub(crate) fn forget_connection(&self, connection: u64) {
        let mut index = self.index();
        if index.retired {
            return;
        }
        for entry in index.entries.free_connection(connection) {
            self.entry(entry).state.set(Entry::FREE);
        }
        index.shares.subtract(connection, usize::MAX);
        for number in index.unrecorded.free_connection(connection) {
            self.clear_id(number);
        }
    }

    fn clear_id(&self, number: usize) {
        if let Some(extension) = self.memory.extension() {
            extension.unrecorded[number].unique.set(0);
        }
    }

    /// The ids of a connection's requests that an earlier server deferred without an entry.
    pub(crate) fn left_unrecorded(&self, connection: u64) -> Vec<u64> {
        let index = self.index();
        let requests = index.unrecorded.iter().map(|(request, _)| request);
        let mut ids: Vec<u64> = requests
            .filter(|request| request.0 == connection)
            .map(|request| request.1)
            .collect();
        ids.sort_unstable();
        ids
    }

    /// The requests of a connection whose server died, oldest id first.
    pub(crate) fn interrupted(&self, connection: u64) -> Vec<Interrupted> {
        let index = self.index();
        let mut found: Vec<_> = self.interrupted_entries(&index, connection).collect();
        found.sort_by_key(|entry| entry.unique.get());
        found.into_iter().map(Entry::interrupted).collect()
    }

    /// Records that the kernel has been asked to send again what this connection's servers left unanswered.
    /// What it never sends is forgotten in the end.
    pub(crate) fn asked_again(&self, connection: u64) {
        let index = self.index();
        for entry in self.interrupted_entries(&index, connection) {
            entry.age.set(entry.age.get().saturating_add(1));
        }
    }

    fn interrupted_entries<'a>(
        &'a self,
        index: &'a Index,
        connection: u64,
    ) -> impl Iterator<Item = &'a Entry> {
        let of_connection = index.entries.iter();
        of_connection
            .filter(move |(request, _)| request.0 == connection)
            .map(|(_, number)| self.entry(number))
            .filter(|entry| entry.state.get() == Entry::INTERRUPTED)
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        // In a model the thread that has it must run.
        #[cfg(test)]
        while layout::observe::may_switch() && self.index.is_locked() {}
        self.index.lock()
    }

    fn entry(&self, number: usize) -> &Entry {
        numbered::entry(&self.memory, number)
    }
}

#[cfg(test)]
mod concurrency;
#[cfg(test)]
mod tests;
