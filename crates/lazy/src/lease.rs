//! The layers in use: each is opened once, however many mounts use it, and closed with its last
//! lease.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use parking_lot::Mutex;
use soci_store::LayerKey;
use tokio::sync::OnceCell;

/// Open layers by key, each with the number of its uses.
pub(crate) struct LeaseMap<T> {
    entries: Mutex<HashMap<LayerKey, Entry<T>>>,
}

struct Entry<T> {
    cell: Arc<OnceCell<Arc<T>>>,
    users: usize,
}

impl<T> Default for LeaseMap<T> {
    fn default() -> Self {
        Self {
            entries: Mutex::default(),
        }
    }
}

impl<T: Send + Sync + 'static> LeaseMap<T> {
    /// Leases a layer, which `open` opens unless it is open. Concurrent callers wait for the open in
    /// progress; after a failure the next caller opens.
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
        // Dropping this future releases the use.
        let in_use = Use {
            map: self.clone(),
            key,
        };
        let layer = cell
            .get_or_try_init(|| async { open.await.map(Arc::new) })
            .await?
            .clone();
        Ok(Lease { layer, in_use })
    }

    /// Returns an open layer.
    pub(crate) fn open(&self, key: &LayerKey) -> Option<Arc<T>> {
        self.entries.lock().get(key)?.cell.get().cloned()
    }

    /// Whether any layer that fits is in use.
    pub(crate) fn any_in_use(&self, fits: impl Fn(&LayerKey) -> bool) -> bool {
        self.entries.lock().keys().any(fits)
    }

    /// Whether the layer is in use, also by a caller that waits for it to be opened.
    pub(crate) fn in_use(&self, key: &LayerKey) -> bool {
        self.entries.lock().contains_key(key)
    }
}

/// A layer in use. Dropping the lease ends the use.
pub(crate) struct Lease<T: Send + Sync + 'static> {
    layer: Arc<T>,
    in_use: Use<T>,
}

impl<T: Send + Sync + 'static> Lease<T> {
    /// The layer.
    pub(crate) fn layer(&self) -> &Arc<T> {
        &self.layer
    }

    /// The key of the layer.
    pub(crate) fn key(&self) -> LayerKey {
        self.in_use.key
    }
}

struct Use<T: Send + Sync + 'static> {
    map: Arc<LeaseMap<T>>,
    key: LayerKey,
}

impl<T: Send + Sync + 'static> Drop for Use<T> {
    fn drop(&mut self) {
        let mut entries = self.map.entries.lock();
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
        let layers = Arc::new(LeaseMap::<u32>::default());
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
        let layers = Arc::new(LeaseMap::<u32>::default());
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
    async fn a_cancelled_acquisition_ends_its_use() {
        let layers = Arc::new(LeaseMap::<u32>::default());
        let acquire = layers.acquire(key(1), std::future::pending::<Result<u32, Infallible>>());
        tokio::select! {
            biased;
            _ = acquire => unreachable!("it never finishes"),
            () = tokio::task::yield_now() => {}
        }
        assert!(!layers.in_use(&key(1)));
    }
}

/// Interleavings of callers, chosen at random by shuttle. `SHUTTLE_ITERATIONS` sets the number of
/// schedules per test.
#[cfg(test)]
mod concurrency {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use shuttle::future::{block_on, spawn, yield_now};
    use soci_oci::Digest;

    use super::*;

    fn check(test: impl Fn() + Send + Sync + 'static) {
        let set = std::env::var("SHUTTLE_ITERATIONS").ok();
        let iterations = set.and_then(|text| text.parse().ok()).unwrap_or(300);
        shuttle::check_random(test, iterations);
    }

    /// A layer that is open: there is never another one with its key.
    struct Open(Arc<AtomicUsize>);

    impl Open {
        fn new(open: Arc<AtomicUsize>) -> Self {
            assert_eq!(open.fetch_add(1, Ordering::SeqCst), 0, "opened twice");
            Self(open)
        }
    }

    impl Drop for Open {
        fn drop(&mut self) {
            assert_eq!(self.0.fetch_sub(1, Ordering::SeqCst), 1);
        }
    }

    #[test]
    fn a_layer_is_open_once_however_its_callers_come_fail_give_up_and_go() {
        check(|| {
            let layers = Arc::new(LeaseMap::<Open>::default());
            let open = Arc::new(AtomicUsize::new(0));
            let key = LayerKey {
                layer: Digest::of(b"layer"),
                ztoc: Digest::of(b"z"),
            };
            let callers = (0..4).map(|caller| {
                let (layers, open) = (layers.clone(), open.clone());
                spawn(async move {
                    let opening = async {
                        yield_now().await;
                        let opened = Open::new(open);
                        yield_now().await;
                        match caller {
                            0 => Err(()),
                            _ => Ok(opened),
                        }
                    };
                    let acquire = layers.acquire(key, opening);
                    if caller == 1 {
                        // Gives up: the future is dropped after its first step.
                        let _ =
                            futures::future::select(Box::pin(acquire), Box::pin(yield_now())).await;
                        return;
                    }
                    let lease = acquire.await;
                    assert!(lease.is_err() || layers.in_use(&key));
                    yield_now().await;
                    drop(lease);
                })
            });
            let callers: Vec<_> = callers.collect();
            block_on(async {
                for caller in callers {
                    caller.await.unwrap();
                }
            });
            assert!(!layers.in_use(&key));
            assert_eq!(open.load(Ordering::SeqCst), 0);
        });
    }
}
