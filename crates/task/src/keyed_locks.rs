//! One lock per key, created on demand and dropped with its last holder.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// Locks by key.
#[derive(Debug)]
pub struct KeyedLocks<K> {
    locks: Mutex<HashMap<K, Weak<AsyncMutex<()>>>>,
}

impl<K> Default for KeyedLocks<K> {
    fn default() -> Self {
        Self {
            locks: Mutex::default(),
        }
    }
}

impl<K: Hash + Eq> KeyedLocks<K> {
    /// Acquires the lock of this key.
    pub async fn lock(&self, key: impl Into<K>) -> OwnedMutexGuard<()> {
        let lock = {
            let key = key.into();
            let mut locks = self.locks.lock();
            locks.retain(|_, lock| lock.strong_count() > 0);
            match locks.get(&key).and_then(Weak::upgrade) {
                Some(lock) => lock,
                None => {
                    let lock = Arc::new(AsyncMutex::new(()));
                    locks.insert(key, Arc::downgrade(&lock));
                    lock
                }
            }
        };
        lock.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn locks_of_different_keys_do_not_wait_for_each_other() {
        let locks = KeyedLocks::<u8>::default();
        let first = locks.lock(1).await;
        let second = locks.lock(2).await;
        tokio::select! {
            biased;
            _ = locks.lock(1) => panic!("it is locked"),
            () = tokio::task::yield_now() => {}
        }
        drop((first, second));
        let _again = locks.lock(1).await;
    }
}
