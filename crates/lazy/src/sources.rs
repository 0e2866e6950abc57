//! The repositories that spans of a layer are fetched from: every repository whose images use the
//! layer has it, and one may be gone or refuse access while another works.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use parking_lot::{Mutex, RwLock};
use soci_layer::{Cause, LayerRefusal};
use soci_oci::{Descriptor, Reference};
use soci_registry::{BlobSource, ByteStream, Client, Deadline, RegistryError, RemoteBlob};
use soci_task::KeyedLocks;
use soci_telemetry::Meters;
use soci_telemetry::metrics::duration_ms;
use tokio::time::Instant;

/// Greatest number of repositories per layer.
const MAX_REPOSITORIES: usize = 16;
/// Bytes of a local file that are read at a time.
const LOCAL_PIECE: usize = 1 << 20;

/// The repositories that are known to have one blob. Clones share them.
#[derive(Clone)]
pub(crate) struct Sources {
    client: Client,
    meters: Arc<Meters>,
    blob: Descriptor,
    known: Arc<RwLock<Vec<Source>>>,
    local: Arc<Mutex<Option<Arc<File>>>>,
    /// Held by repository while its registry is asked for the blob.
    asking: Arc<KeyedLocks<String>>,
    /// Position of the repository for the next request: the last one that worked, or the one after.
    next: Arc<AtomicUsize>,
}

#[derive(Clone)]
struct Source {
    repository: String,
    blob: RemoteBlob,
}

impl Sources {
    /// Creates sources without any repository.
    pub(crate) fn new(client: Client, meters: Arc<Meters>, blob: Descriptor) -> Self {
        Self {
            client,
            meters,
            blob,
            known: Arc::default(),
            local: Arc::default(),
            asking: Arc::default(),
            next: Arc::default(),
        }
    }

    /// Adds the repository of an image that uses the layer.
    pub(crate) fn add(&self, reference: &Reference) {
        let repository = reference.name();
        let mut known = self.known.write();
        if known.len() < MAX_REPOSITORIES
            && known.iter().all(|source| source.repository != repository)
        {
            known.push(Source {
                repository,
                blob: self.client.blob(reference, &self.blob),
            });
        }
    }

    /// Adds the repository of an image once its registry has confirmed, to the image's credentials,
    /// that it has the blob. It is asked once, unless there are too many repositories to remember.
    ///
    /// # Errors
    /// The registry does not confirm it.
    pub(crate) async fn add_confirmed(&self, reference: &Reference) -> Result<(), LayerRefusal> {
        let repository = reference.name();
        let _alone = self.asking.lock(repository.clone()).await;
        let is_known = |source: &Source| source.repository == repository;
        if self.known.read().iter().any(is_known) {
            return Ok(());
        }
        let refusal = match self.client.blob_exists(reference, &self.blob).await {
            Ok(true) => {
                self.add(reference);
                return Ok(());
            }
            Ok(false) => None,
            Err(error) => Some(error),
        };
        Err(LayerRefusal::Unconfirmed {
            repository,
            source: refusal.map(|error| Arc::new(error) as Cause),
        })
    }

    /// Reads from a file with the whole blob, before any repository, until the guard is dropped. Not
    /// for longer than needed: an open file keeps its space on disk after its owner has removed it.
    pub(crate) fn read_locally(&self, file: File) -> LocalGuard {
        *self.local.lock() = Some(Arc::new(file));
        LocalGuard(self.local.clone())
    }

    /// Streams a range of the local file, if there is one. After a failure it is not asked again.
    fn local_range(&self, range: Range<u64>) -> Option<ByteStream> {
        let file = self.local.lock().clone()?;
        let (local, end) = (self.local.clone(), range.end);
        let pieces = range.step_by(LOCAL_PIECE).map(move |start| {
            let (file, local) = (file.clone(), local.clone());
            let length = usize::try_from(end - start).unwrap_or(LOCAL_PIECE);
            async move {
                let read = soci_task::run(move || {
                    let mut bytes = vec![0; length.min(LOCAL_PIECE)];
                    file.read_exact_at(&mut bytes, start)?;
                    Ok(Bytes::from(bytes))
                });
                let read = read
                    .await
                    .unwrap_or_else(|error| Err(io::Error::other(error)));
                read.map_err(|error| {
                    *local.lock() = None;
                    RegistryError::Config(format!(
                        "cannot read a layer that containerd stores: {error}"
                    ))
                })
            }
        });
        Some(futures::stream::iter(pieces).then(|piece| piece).boxed())
    }

    /// Returns the source at a position, counted round the list.
    fn at(&self, position: usize) -> Option<RemoteBlob> {
        let known = self.known.read();
        let position = position.checked_rem(known.len())?;
        known.get(position).map(|source| source.blob.clone())
    }

    fn current(&self) -> Option<RemoteBlob> {
        self.at(self.next.load(Ordering::Relaxed))
    }
}

/// Ends the reading from a local file when it is dropped.
pub(crate) struct LocalGuard(Arc<Mutex<Option<Arc<File>>>>);

impl Drop for LocalGuard {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}

/// The deadline of the next of `left` repositories: a dead one leaves time for those after it.
fn share(deadline: Deadline, left: usize) -> Deadline {
    let left = u32::try_from(left).unwrap_or(u32::MAX);
    Deadline::after(deadline.remaining() / left.max(1))
}

#[async_trait]
impl BlobSource for Sources {
    fn size(&self) -> u64 {
        self.blob.size
    }

    async fn stream_range(
        &self,
        range: Range<u64>,
        deadline: Deadline,
    ) -> Result<ByteStream, RegistryError> {
        if let Some(stream) = self.local_range(range.clone()) {
            return Ok(stream);
        }
        let count = self.known.read().len();
        let first = self.next.load(Ordering::Relaxed);
        let mut failure = None;
        for position in first..first.saturating_add(count) {
            let Some(source) = self.at(position) else {
                break;
            };
            // If the caller gives up on this repository, its next request goes to the next one.
            self.next.store(position.wrapping_add(1), Ordering::Relaxed);
            let (start, located) = (Instant::now(), source.is_located());
            let limit = share(deadline, first.saturating_add(count) - position);
            match source.stream_range(range.clone(), limit).await {
                Ok(stream) => {
                    let layer = self.blob.digest.to_string();
                    let took = |operation| self.meters.took(operation, &layer, start.elapsed());
                    took(duration_ms::REMOTE_REGISTRY_GET);
                    if !located {
                        took(duration_ms::BLOB_REDIRECT);
                    }
                    self.next.store(position, Ordering::Relaxed);
                    let next = self.next.clone();
                    let stream = stream.inspect_err(move |_| {
                        next.store(position.wrapping_add(1), Ordering::Relaxed);
                    });
                    return Ok(stream.boxed());
                }
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or_else(|| {
            RegistryError::Config(format!(
                "no repository is known to have {}",
                self.blob.digest
            ))
        }))
    }

    fn ignores_ranges(&self) -> bool {
        self.current().is_some_and(|source| source.ignores_ranges())
    }

    fn retry_count(&self) -> u64 {
        let known = self.known.read();
        known.iter().map(|source| source.blob.retry_count()).sum()
    }

    fn gave_up(&self) {
        self.next.fetch_add(1, Ordering::Relaxed);
    }

    fn describe(&self) -> String {
        let source = self.current();
        source.map_or_else(|| self.blob.digest.to_string(), |source| source.describe())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_dead_repository_leaves_time_for_those_after_it() {
        let deadline = Deadline::after(Duration::from_secs(60));
        for (left, seconds) in [(3, 20), (2, 30), (1, 60)] {
            let share = share(deadline, left).remaining();
            assert!(share <= Duration::from_secs(seconds), "{share:?}");
            assert!(share > Duration::from_secs(seconds - 5), "{share:?}");
        }
    }
}
