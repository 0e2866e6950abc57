//! What has been found out about images: single flight while it is being found out, kept when it is
//! an index, believed for a while when it is none.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use soci_layer::LayerRefusal;

use crate::labels::ImageKey;

/// Images remembered at most. Forgetting one costs a look-up, nothing else.
const MAX_IMAGES: usize = 512;

/// Verdicts by image.
pub(crate) struct Verdicts<T> {
    images: Mutex<HashMap<ImageKey, Arc<Cell<T>>>>,
    retry_after: Duration,
}

type Cell<T> = tokio::sync::Mutex<Option<Verdict<T>>>;

struct Verdict<T> {
    found: Result<Arc<T>, LayerRefusal>,
    at: Instant,
}

impl<T> Verdicts<T> {
    pub(crate) fn new(retry_after: Duration) -> Self {
        Self {
            images: Mutex::new(HashMap::new()),
            retry_after,
        }
    }

    /// The verdict about an image, found out by `find` unless it is known. Whoever comes while it is
    /// being found out waits for that.
    pub(crate) async fn get<F>(&self, image: &ImageKey, find: F) -> Result<Arc<T>, LayerRefusal>
    where
        F: Future<Output = Result<T, LayerRefusal>>,
    {
        self.get_unless_older(image, self.retry_after, find).await
    }

    /// The same, a failure being believed for this long only.
    pub(crate) async fn get_unless_older<F>(
        &self,
        image: &ImageKey,
        retry_after: Duration,
        find: F,
    ) -> Result<Arc<T>, LayerRefusal>
    where
        F: Future<Output = Result<T, LayerRefusal>>,
    {
        let cell = self.cell(image);
        let mut verdict = cell.lock().await;
        if let Some(known) = verdict.as_ref()
            && (known.found.is_ok() || known.at.elapsed() < retry_after)
        {
            return known.found.clone();
        }
        let found = find.await.map(Arc::new);
        *verdict = Some(Verdict {
            found: found.clone(),
            at: Instant::now(),
        });
        found
    }

    /// Forgets an image, so that the next question is asked anew.
    pub(crate) fn forget(&self, image: &ImageKey) {
        self.images.lock().remove(image);
    }

    fn cell(&self, image: &ImageKey) -> Arc<Cell<T>> {
        let mut images = self.images.lock();
        if images.len() >= MAX_IMAGES && !images.contains_key(image) {
            // Those being found out right now are held by others too and stay.
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

    #[tokio::test]
    async fn fifty_askers_at_once_cause_one_look_up() {
        let verdicts = Verdicts::<u32>::new(Duration::from_secs(60));
        let asked = AtomicU32::new(0);
        let image = image();
        let answers = futures::future::join_all((0..50).map(|_| {
            verdicts.get(&image, async {
                tokio::task::yield_now().await;
                Ok(asked.fetch_add(1, Ordering::Relaxed))
            })
        }))
        .await;
        assert!(answers.iter().all(|answer| **answer.as_ref().unwrap() == 0));
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn no_index_is_believed_for_a_while_only() {
        let refuse = async { Err::<u32, _>(LayerRefusal::not_indexed("none")) };
        let believed = Verdicts::new(Duration::from_secs(60));
        believed.get(&image(), refuse).await.unwrap_err();
        believed.get(&image(), async { Ok(1) }).await.unwrap_err();

        let doubted = Verdicts::new(Duration::ZERO);
        let refuse = async { Err::<u32, _>(LayerRefusal::not_indexed("none")) };
        doubted.get(&image(), refuse).await.unwrap_err();
        assert_eq!(*doubted.get(&image(), async { Ok(1) }).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn the_memory_of_images_is_bounded() {
        let verdicts = Verdicts::new(Duration::from_secs(60));
        for n in 0..2 * MAX_IMAGES {
            let image = ImageKey {
                manifest: Digest::of(&n.to_le_bytes()),
                ..image()
            };
            verdicts.get(&image, async { Ok(n) }).await.unwrap();
        }
        assert!(verdicts.images.lock().len() <= MAX_IMAGES);
    }
}
