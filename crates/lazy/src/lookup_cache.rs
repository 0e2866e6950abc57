//! The results of index look-ups in memory: one look-up at a time per image, and a negative cache.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use soci_layer::LayerRefusal;
use tokio::time::Instant;

use crate::image_layer::ImageKey;

/// Greatest number of images in the cache. Dropping one costs a look-up.
const MAX_IMAGES: usize = 512;

/// Shortest time for which the failure of a registry is cached.
const MIN_FAILURE: Duration = Duration::from_secs(2);

/// Shortest time for which it is cached that a registry cannot be reached.
const UNREACHABLE: Duration = Duration::from_secs(30);

/// Look-up results by image.
pub(crate) struct LookupCache<T> {
    images: Mutex<HashMap<ImageKey, Arc<Cell<T>>>>,
    retry_after: Duration,
}

/// Locked while the look-up runs.
type Cell<T> = tokio::sync::Mutex<Option<Lookup<T>>>;

struct Lookup<T> {
    result: Result<Arc<T>, LayerRefusal>,
    at: Instant,
    /// Duration of the look-up.
    took: Duration,
}

impl<T> Lookup<T> {
    /// Whether the result may be used: an index always, a failure for `retry_after` at most.
    ///
    /// The failure of a registry is used for as long as the look-up took, so that the layers of one
    /// image share it, and no more than half of the time is spent waiting for the registry. That it
    /// cannot be reached is used longer: the client may take its time between two layers.
    fn is_current(&self, retry_after: Duration) -> bool {
        let lifetime = match &self.result {
            Ok(_) => return true,
            Err(LayerRefusal::IndexUnavailable {
                unreachable: true, ..
            }) => self.took.max(UNREACHABLE),
            Err(LayerRefusal::IndexUnavailable { .. }) => self.took.max(MIN_FAILURE),
            Err(_) => retry_after,
        };
        self.at.elapsed() < lifetime.min(retry_after)
    }
}

impl<T> LookupCache<T> {
    /// Creates an empty cache that keeps failures for `retry_after` at most.
    pub(crate) fn new(retry_after: Duration) -> Self {
        Self {
            images: Mutex::new(HashMap::new()),
            retry_after,
        }
    }

    /// Returns the cached result for an image, or that of `find`. Concurrent callers wait for the
    /// look-up in progress.
    pub(crate) async fn get<F>(&self, image: &ImageKey, find: F) -> Result<Arc<T>, LayerRefusal>
    where
        F: Future<Output = Result<T, LayerRefusal>>,
    {
        self.get_unless_older(image, self.retry_after, find).await
    }

    /// Like [`get`](Self::get), with failures used for `retry_after` at most.
    pub(crate) async fn get_unless_older<F>(
        &self,
        image: &ImageKey,
        retry_after: Duration,
        find: F,
    ) -> Result<Arc<T>, LayerRefusal>
    where
        F: Future<Output = Result<T, LayerRefusal>>,
    {
        let retry_after = retry_after.min(self.retry_after);
        let cell = self.cell(image);
        let mut lookup = cell.lock().await;
        if let Some(known) = lookup.as_ref()
            && known.is_current(retry_after)
        {
            return known.result.clone();
        }
        let start = Instant::now();
        let result = find.await.map(Arc::new);
        *lookup = Some(Lookup {
            result: result.clone(),
            at: Instant::now(),
            took: start.elapsed(),
        });
        result
    }

    /// Drops results that fit. Look-ups in progress continue.
    pub(crate) fn forget(&self, fits: impl Fn(&T) -> bool) {
        self.images.lock().retain(|_, cell| {
            let Ok(lookup) = cell.try_lock() else {
                return true;
            };
            let found = lookup.as_ref().and_then(|known| known.result.as_ref().ok());
            !found.is_some_and(|found| fits(found))
        });
    }

    fn cell(&self, image: &ImageKey) -> Arc<Cell<T>> {
        let mut images = self.images.lock();
        if images.len() >= MAX_IMAGES && !images.contains_key(image) {
            // Look-ups in progress hold their cell and stay.
            images.retain(|_, cell| Arc::strong_count(cell) > 1);
        }
        images.entry(image.clone()).or_default().clone()
    }
}
#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use soci_oci::Digest;

    use super::*;

    fn image() -> ImageKey {
        ImageKey {
            reference: "localhost/a:1".parse().unwrap(),
            manifest: Digest::of(b"m"),
            explicit_index: None,
            namespace: String::new(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn fifty_concurrent_callers_cause_one_look_up() {
        let cache = LookupCache::<u32>::new(Duration::from_secs(60));
        let asked = AtomicU32::new(0);
        let image = image();
        let answers = futures::future::join_all((0..50).map(|_| {
            cache.get(&image, async {
                tokio::task::yield_now().await;
                Ok(asked.fetch_add(1, Ordering::Relaxed))
            })
        }))
        .await;
        assert!(answers.iter().all(|answer| **answer.as_ref().unwrap() == 0));
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_absence_of_an_index_is_cached_for_a_while() {
        let refuse = async { Err::<u32, _>(LayerRefusal::not_indexed("none")) };
        let cached = LookupCache::new(Duration::from_secs(60));
        cached.get(&image(), refuse).await.unwrap_err();
        cached.get(&image(), async { Ok(1) }).await.unwrap_err();

        let expired = LookupCache::new(Duration::ZERO);
        let refuse = async { Err::<u32, _>(LayerRefusal::not_indexed("none")) };
        expired.get(&image(), refuse).await.unwrap_err();
        assert_eq!(*expired.get(&image(), async { Ok(1) }).await.unwrap(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_failure_of_a_registry_is_cached_for_as_long_as_the_look_up_took() {
        let failure = |unreachable| LayerRefusal::IndexUnavailable {
            source: Arc::new(std::io::Error::other("refused")),
            unreachable,
        };
        for (took, unreachable, holds_for) in [
            (0, false, 2),
            (30, false, 30),
            (100, false, 60),
            (0, true, 30),
            (40, true, 40),
            (100, true, 60),
        ] {
            let cache = LookupCache::<u32>::new(Duration::from_secs(60));
            let fail = async {
                tokio::time::sleep(Duration::from_secs(took)).await;
                Err(failure(unreachable))
            };
            cache.get(&image(), fail).await.unwrap_err();
            tokio::time::sleep(Duration::from_secs(holds_for) - Duration::from_millis(10)).await;
            cache.get(&image(), async { Ok(1) }).await.unwrap_err();
            tokio::time::sleep(Duration::from_millis(20)).await;
            cache.get(&image(), async { Ok(1) }).await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_cached_images_is_bounded() {
        let cache = LookupCache::new(Duration::from_secs(60));
        for n in 0..2 * MAX_IMAGES {
            let image = ImageKey {
                manifest: Digest::of(&n.to_le_bytes()),
                ..image()
            };
            cache.get(&image, async { Ok(n) }).await.unwrap();
        }
        assert!(cache.images.lock().len() <= MAX_IMAGES);
    }
}
