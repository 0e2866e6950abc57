//! The deferred requests of a connection.

use std::collections::HashMap;

use parking_lot::Mutex;

/// The requests of one connection that wait, and the threads that wait for them.
#[derive(Debug, Default)]
pub(crate) struct Waiting(Mutex<HashMap<u64, u32>>);

impl Waiting {
    pub(crate) fn add(&self, unique: u64, pid: u32) {
        self.0.lock().insert(unique, pid);
    }

    /// Removes a request; false if it was given up before.
    pub(crate) fn remove(&self, unique: u64) -> bool {
        self.0.lock().remove(&unique).is_some()
    }

    /// The thread that waits for a request; `None` if it does not wait.
    pub(crate) fn caller(&self, unique: u64) -> Option<u32> {
        self.0.lock().get(&unique).copied()
    }
}
