//! Ids of snapshots: which are ours, and which are reserved for a snapshot that is being made.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// The ids that this snapshotter uses. An id is used once.
pub(crate) struct Ids {
    /// Directories with lower ids belong to another program.
    first: u64,
    next: AtomicU64,
    /// Ids whose directories may exist before, or without, their metadata.
    reserved: Arc<Mutex<HashSet<u64>>>,
}

/// An id for a snapshot that is being made. The sweep spares its directory until this is dropped.
pub(crate) struct Reservation {
    pub(crate) id: u64,
    reserved: Arc<Mutex<HashSet<u64>>>,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.reserved.lock().remove(&self.id);
    }
}

impl Ids {
    pub(crate) fn new(first: u64, next: u64) -> Self {
        Self {
            first,
            next: AtomicU64::new(next),
            reserved: Arc::default(),
        }
    }

    /// Reserves an id that no snapshot ever had.
    pub(crate) fn reserve(&self) -> Reservation {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.reserved.lock().insert(id);
        Reservation {
            id,
            reserved: Arc::clone(&self.reserved),
        }
    }

    /// Returns the ids that are reserved now.
    pub(crate) fn reserved(&self) -> HashSet<u64> {
        self.reserved.lock().clone()
    }

    /// Whether this snapshotter may delete a directory with this id.
    pub(crate) const fn owns(&self, id: u64) -> bool {
        id >= self.first
    }
}
