//! Prepares of image layers that are under way, by their keys: removing a snapshot that is being
//! made ends the work on it.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

type Calls = Mutex<HashMap<String, Vec<(u64, CancellationToken)>>>;

/// The Prepares under way.
#[derive(Debug, Default)]
pub(crate) struct Preparing {
    calls: Arc<Calls>,
    begun: Mutex<u64>,
}

/// A Prepare under way. It has ended when this is dropped.
pub(crate) struct UnderWay {
    calls: Arc<Calls>,
    key: String,
    number: u64,
}

impl Preparing {
    /// Registers a Prepare of `key`, which `cancel` ends.
    pub(crate) fn begin(&self, key: &str, cancel: &CancellationToken) -> UnderWay {
        let number = {
            let mut begun = self.begun.lock();
            *begun += 1;
            *begun
        };
        let mut calls = self.calls.lock();
        let of_key = calls.entry(key.to_owned()).or_default();
        of_key.push((number, cancel.clone()));
        UnderWay {
            calls: Arc::clone(&self.calls),
            key: key.to_owned(),
            number,
        }
    }

    /// Cancels the Prepares of `key`; `false` if there is none.
    pub(crate) fn end(&self, key: &str) -> bool {
        let calls = self.calls.lock();
        let Some(of_key) = calls.get(key) else {
            return false;
        };
        for (_, cancel) in of_key {
            cancel.cancel();
        }
        true
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut calls = self.calls.lock();
        if let Some(of_key) = calls.get_mut(&self.key) {
            of_key.retain(|(number, _)| *number != self.number);
            if of_key.is_empty() {
                calls.remove(&self.key);
            }
        }
    }
}
