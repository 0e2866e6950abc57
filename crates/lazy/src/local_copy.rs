//! A layer's compressed bytes on this machine: in a file that is lent for a while, or in the content
//! store of the containerd that uses the layer.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use parking_lot::Mutex;
use soci_oci::Digest;
use soci_registry::{ByteStream, RegistryError};
use tokio::time::Instant;

use crate::image_store::ImageStore;

/// Bytes of a file that are read at a time.
const PIECE: usize = 1 << 20;
/// Time after which containerd is asked again for a layer that it did not have, or for whether it
/// still has it.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// The copies of one layer.
pub(crate) struct LocalCopy {
    layer: Digest,
    size: u64,
    /// Shared with the streams and guards that it is lent to.
    lent: Arc<Mutex<Option<Arc<File>>>>,
    stored: Arc<tokio::sync::Mutex<Stored>>,
    /// Whether the last range came from a copy.
    used: AtomicBool,
    /// A copy had wrong bytes, or could not be read.
    damaged: Arc<AtomicBool>,
}

/// What containerd has.
#[derive(Default)]
struct Stored {
    /// Closed after a while: an open file keeps its space on disk after containerd has removed it.
    file: Option<Arc<File>>,
    asked: Option<Instant>,
}

/// Ends the reading from a lent file when it is dropped.
pub(crate) struct LocalGuard(Arc<Mutex<Option<Arc<File>>>>);

impl Drop for LocalGuard {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}

impl LocalCopy {
    /// Creates the copies of a layer of `size` bytes; none is known yet.
    pub(crate) fn new(layer: Digest, size: u64) -> Self {
        Self {
            layer,
            size,
            lent: Arc::default(),
            stored: Arc::default(),
            used: AtomicBool::new(false),
            damaged: Arc::default(),
        }
    }

    /// Reads from a file with the whole layer until the guard is dropped.
    pub(crate) fn read_from(&self, file: File) -> LocalGuard {
        *self.lent.lock() = Some(Arc::new(file));
        LocalGuard(self.lent.clone())
    }

    /// Whether the last range came from a copy.
    pub(crate) fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    /// Notes that bytes were wrong. Returns whether they came from a copy, which is not used again.
    pub(crate) fn served_damage(&self) -> bool {
        let used = self.used.swap(false, Ordering::Relaxed);
        if used && !self.damaged.swap(true, Ordering::Relaxed) {
            tracing::warn!(layer = %self.layer, "a copy of a layer is damaged: it is fetched from the registry");
            *self.lent.lock() = None;
        }
        used
    }

    /// Streams a range of a copy, if there is one. `namespaces` are those of the layer's clients.
    pub(crate) async fn range(
        &self,
        range: Range<u64>,
        images: &ImageStore,
        namespaces: impl FnOnce() -> BTreeSet<String>,
    ) -> Option<ByteStream> {
        let file = match self.damaged.load(Ordering::Relaxed) {
            true => None,
            false => self.file(images, namespaces).await,
        };
        self.used.store(file.is_some(), Ordering::Relaxed);
        Some(self.stream(file?, range))
    }

    async fn file(
        &self,
        images: &ImageStore,
        namespaces: impl FnOnce() -> BTreeSet<String>,
    ) -> Option<Arc<File>> {
        let lent = self.lent.lock().clone();
        if lent.is_some() {
            return lent;
        }
        let mut stored = self.stored.lock().await;
        if stored.asked.is_none_or(|at| at.elapsed() >= ASK_AGAIN) {
            stored.file = None;
            for namespace in namespaces() {
                // Boxed: calls of containerd are large futures.
                let open = Box::pin(images.layer_file(&namespace, self.layer, self.size));
                if let Some(file) = open.await {
                    stored.file = Some(Arc::new(file));
                    let stored = self.stored.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(ASK_AGAIN).await;
                        *stored.lock().await = Stored::default();
                    });
                    break;
                }
            }
            stored.asked = Some(Instant::now());
        }
        stored.file.clone()
    }

    fn stream(&self, file: Arc<File>, range: Range<u64>) -> ByteStream {
        let (end, damaged) = (range.end, self.damaged.clone());
        let pieces = range.step_by(PIECE).map(move |start| {
            let (file, damaged) = (file.clone(), damaged.clone());
            let length = usize::try_from(end - start).unwrap_or(PIECE);
            async move {
                let read = soci_task::run(move || {
                    let mut bytes = vec![0; length.min(PIECE)];
                    file.read_exact_at(&mut bytes, start)?;
                    Ok(Bytes::from(bytes))
                });
                let read = read
                    .await
                    .unwrap_or_else(|error| Err(io::Error::other(error)));
                read.map_err(|error| {
                    damaged.store(true, Ordering::Relaxed);
                    RegistryError::Source {
                        what: "a layer that containerd stores".to_owned(),
                        source: Arc::new(error),
                    }
                })
            }
        });
        stream::iter(pieces).then(|piece| piece).boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use futures::TryStreamExt as _;

    use super::*;

    #[tokio::test]
    async fn a_copy_that_had_wrong_bytes_is_not_read_again() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"wrong").unwrap();
        let (copy, images) = (
            LocalCopy::new(Digest::of(b"right"), 5),
            ImageStore::default(),
        );
        let lend = |copy: &LocalCopy| copy.read_from(file.try_clone().unwrap());
        let read = async |copy: &LocalCopy| {
            let stream = copy.range(1..4, &images, BTreeSet::new).await?;
            let pieces: Vec<Bytes> = stream.try_collect().await.unwrap();
            Some(pieces.concat())
        };
        assert_eq!(read(&copy).await, None);
        assert!(!copy.served_damage(), "the registry did");
        let guard = lend(&copy);
        assert_eq!(read(&copy).await.as_deref(), Some(&b"ron"[..]));
        assert!(copy.is_used());
        assert!(copy.served_damage());
        // Nor is one that is lent afterwards.
        let another = lend(&copy);
        assert_eq!(read(&copy).await, None);
        assert!(!copy.is_used());
        assert!(!copy.served_damage());
        drop((guard, another));
    }
}
