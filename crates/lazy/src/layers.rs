//! The layers being served: each once, however many snapshots use it, and none after its last user.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use parking_lot::Mutex;
use soci_store::LayerKey;
use tokio::sync::OnceCell;

/// Layers by key, with the number of their users.
pub(crate) struct Layers<T> {
    entries: Mutex<HashMap<LayerKey, Entry<T>>>,
}

struct Entry<T> {
    cell: Arc<OnceCell<Arc<T>>>,
    users: usize,
}

impl<T> Default for Layers<T> {
    fn default() -> Self {
        Self {
            entries: Mutex::default(),
        }
    }
}

impl<T: Send + Sync + 'static> Layers<T> {
    /// Becomes a user of a layer, which `open` makes ready unless it is already. Whoever comes
    /// meanwhile waits for that; after a failure the next one tries.
    pub(crate) async fn acquire<E, F>(
        self: &Arc<Self>,
        key: LayerKey,
        open: F,
    ) -> Result<Lease<T>, E>
    where
        F: Future<Output = Result<T, E>>,
    {
        let cell = {
            let mut entries = self.entries.lock();
            let entry = entries.entry(key).or_insert_with(|| Entry {
                cell: Arc::default(),
                users: 0,
            });
            entry.users += 1;
            entry.cell.clone()
        };
        // Counted from here on: dropping the future lets go again.
        let hold = Hold {
            layers: self.clone(),
            key,
        };
        let layer = cell
            .get_or_try_init(|| async { open.await.map(Arc::new) })
            .await?
            .clone();
        Ok(Lease { layer, hold })
    }

    /// Has any of the layers that fit a user?
    pub(crate) fn any_in_use(&self, fits: impl Fn(&LayerKey) -> bool) -> bool {
        self.entries.lock().keys().any(fits)
    }

    /// Has the layer a user, be it one that still waits for it to be opened?
    pub(crate) fn in_use(&self, key: &LayerKey) -> bool {
        self.entries.lock().contains_key(key)
    }
}

/// A user's hold on a layer. Dropping it lets go.
pub(crate) struct Lease<T: Send + Sync + 'static> {
    layer: Arc<T>,
    hold: Hold<T>,
}

impl<T: Send + Sync + 'static> Lease<T> {
    pub(crate) fn layer(&self) -> &Arc<T> {
        &self.layer
    }

    pub(crate) fn key(&self) -> LayerKey {
        self.hold.key
    }
}

struct Hold<T: Send + Sync + 'static> {
    layers: Arc<Layers<T>>,
    key: LayerKey,
}

impl<T: Send + Sync + 'static> Drop for Hold<T> {
    fn drop(&mut self) {
        let mut entries = self.layers.entries.lock();
        if let Some(entry) = entries.get_mut(&self.key) {
            entry.users = entry.users.saturating_sub(1);
            if entry.users == 0 {
                entries.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicU32, Ordering};

    use soci_oci::Digest;

    use super::*;

    fn key(n: u8) -> LayerKey {
        LayerKey {
            layer: Digest::of(&[n]),
            ztoc: Digest::of(b"z"),
        }
    }

    #[tokio::test]
    async fn a_layer_is_opened_once_and_outlives_all_but_its_last_user() {
        let layers = Arc::new(Layers::<u32>::default());
        let opened = AtomicU32::new(0);
        let acquire = || {
            layers.acquire(key(1), async {
                tokio::task::yield_now().await;
                Ok::<_, Infallible>(opened.fetch_add(1, Ordering::Relaxed))
            })
        };
        let (Ok(a), Ok(b)) = tokio::join!(acquire(), acquire());
        assert_eq!(opened.load(Ordering::Relaxed), 1);
        drop(a);
        assert!(layers.in_use(&key(1)));
        drop(b);
        assert!(!layers.in_use(&key(1)));
    }

    #[tokio::test]
    async fn a_failure_is_not_remembered_and_leaves_no_entry() {
        let layers = Arc::new(Layers::<u32>::default());
        layers
            .acquire(key(1), async { Err("no") })
            .await
            .err()
            .unwrap();
        assert!(!layers.in_use(&key(1)));
        let lease = layers
            .acquire(key(1), async { Ok::<_, Infallible>(7) })
            .await
            .unwrap();
        assert_eq!(**lease.layer(), 7);
    }

    #[tokio::test]
    async fn a_cancelled_acquisition_lets_go() {
        let layers = Arc::new(Layers::<u32>::default());
        let acquire = layers.acquire(key(1), std::future::pending::<Result<u32, Infallible>>());
        tokio::select! {
            biased;
            _ = acquire => unreachable!("it never finishes"),
            () = tokio::task::yield_now() => {}
        }
        assert!(!layers.in_use(&key(1)));
    }
}
