//! A worker's slot: where it reads requests, and the record of the one that it handles.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Release};

use rustix::io::Errno;

use super::Journal;
use super::layout::SLOT_SIZE;
use crate::shared_memory;

/// A slot of the journal, in the hands of one worker.
pub(crate) struct Slot {
    journal: Arc<Journal>,
    number: usize,
    /// A copy of the request in the slot. The request is handled from here: the next server may use the
    /// slot while a worker that did not stop in time still refers to its request.
    request: Box<[u8]>,
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Slot").field(&self.number).finish()
    }
}

impl Slot {
    /// Takes a slot; `None` if there is no such slot or it is taken.
    pub(crate) fn take(journal: &Arc<Journal>, number: usize) -> Option<Self> {
        let taken = journal.slots_taken.get(number)?;
        (!taken.swap(true, Acquire)).then(|| Self {
            journal: journal.clone(),
            number,
            request: vec![0; SLOT_SIZE].into_boxed_slice(),
        })
    }

    /// Reads a request of a connection from its device; the slot is empty before. Returns the request's
    /// length in bytes.
    pub(crate) fn read(&mut self, connection: u64, device: BorrowedFd<'_>) -> Result<usize, Errno> {
        self.clear_for(connection);
        // An opaque call: the compiler does not move the stores past it.
        let slot = self.journal.memory.layout().slots[self.number].words();
        let length = shared_memory::read_into(device, slot)?;
        self.copy_out(length);
        Ok(length)
    }

    /// The length is cleared before the connection is stored: a death in between must not attribute the old
    /// request to the new connection.
    pub(super) fn clear_for(&mut self, connection: u64) {
        let layout = self.journal.memory.layout();
        layout.slots[self.number].clear_length();
        layout.slot_headers[self.number].connection.set(connection);
    }

    fn copy_out(&mut self, length: usize) {
        let layout = self.journal.memory.layout();
        layout.slots[self.number].read(&mut self.request[..length.min(SLOT_SIZE)]);
    }

    /// The request that was read last, of `length` bytes.
    pub(crate) fn request(&self, length: usize) -> &[u8] {
        self.request.get(..length).unwrap_or_default()
    }

    /// Ends the record: the request was answered, or has an entry of its own.
    pub(crate) fn done(&mut self) {
        self.journal.memory.layout().slots[self.number].clear_length();
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.journal.slots_taken[self.number].store(false, Release);
    }
}

#[cfg(test)]
impl Slot {
    /// As [`Slot::read`], with the bytes that the kernel would write.
    pub(super) fn fill(&mut self, connection: u64, request: &[u8]) {
        self.clear_for(connection);
        self.journal.memory.layout().slots[self.number].write(request);
        self.copy_out(request.len());
    }
}
