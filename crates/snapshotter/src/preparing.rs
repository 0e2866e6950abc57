//! Prepares of image layers that are under way, by their keys: removing a snapshot that is being
//! made ends the work on it.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

type Calls = Mutex<HashMap<String, Vec<Call>>>;

/// A Prepare of a key.
struct Call {
    number: u64,
    /// Cancels it.
    cancel: CancellationToken,
    /// Cancelled when it has ended.
    ended: CancellationToken,
}

/// The Prepares under way.
#[derive(Default)]
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
        of_key.push(Call {
            number,
            cancel: cancel.clone(),
            ended: CancellationToken::new(),
        });
        UnderWay {
            calls: Arc::clone(&self.calls),
            key: key.to_owned(),
            number,
        }
    }

    /// Cancels the Prepares of `key`, and waits until they have ended; `false` if there is none.
    pub(crate) async fn end(&self, key: &str) -> bool {
        let ended: Vec<CancellationToken> = {
            let calls = self.calls.lock();
            let of_key = calls.get(key).into_iter().flatten();
            of_key
                .map(|call| {
                    call.cancel.cancel();
                    call.ended.clone()
                })
                .collect()
        };
        for ended in &ended {
            ended.cancelled().await;
        }
        !ended.is_empty()
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut calls = self.calls.lock();
        if let Some(of_key) = calls.get_mut(&self.key) {
            of_key.retain(|call| {
                let stays = call.number != self.number;
                if !stays {
                    call.ended.cancel();
                }
                stays
            });
            if of_key.is_empty() {
                calls.remove(&self.key);
            }
        }
    }
}
