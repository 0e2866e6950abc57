//! The repositories that spans of a layer are fetched from: every repository whose images use the
//! layer has it, and one may be gone or refuse access while another works.

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _};
use parking_lot::RwLock;
use soci_layer::{Cause, LayerRefusal};
use soci_oci::{Descriptor, Reference};
use soci_registry::{
    BlobSource, ByteStream, Client, Deadline, Misconfiguration, RegistryError, RemoteBlob,
};
use soci_task::KeyedLocks;
use soci_telemetry::Meters;
use soci_telemetry::metrics::duration_ms;
use tokio::time::Instant;

use crate::image_store::ImageStore;
use crate::local_copy::{LocalCopy, LocalGuard};

/// Greatest number of repositories per layer.
const MAX_REPOSITORIES: usize = 16;
/// Greatest number of namespaces per layer.
const MAX_NAMESPACES: usize = 16;
/// Shortest time between two searches for further repositories of a layer.
const SEARCH_AGAIN: Duration = Duration::from_millis(500);

/// The repositories that are known to have one blob. Clones share them.
#[derive(Clone)]
pub(crate) struct Sources {
    client: Client,
    meters: Arc<Meters>,
    blob: Descriptor,
    known: Arc<RwLock<Vec<Source>>>,
    /// Copies of the blob on this machine.
    local: Arc<LocalCopy>,
    images: Arc<ImageStore>,
    /// The namespaces of the clients that use the layer.
    namespaces: Arc<RwLock<BTreeSet<String>>>,
    /// When the images of the clients were last searched for further repositories.
    searched: Arc<tokio::sync::Mutex<Option<Instant>>>,
    /// Held by repository while the blob is requested from its registry.
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
    pub(crate) fn new(
        client: Client,
        meters: Arc<Meters>,
        images: Arc<ImageStore>,
        blob: Descriptor,
    ) -> Self {
        Self {
            client,
            meters,
            local: Arc::new(LocalCopy::new(blob.digest, blob.size)),
            blob,
            images,
            known: Arc::default(),
            namespaces: Arc::default(),
            searched: Arc::default(),
            asking: Arc::default(),
            next: Arc::default(),
        }
    }

    /// Adds the namespace of a client that uses the layer.
    pub(crate) fn add_namespace(&self, namespace: &str) {
        let mut namespaces = self.namespaces.write();
        if !namespace.is_empty() && namespaces.len() < MAX_NAMESPACES {
            namespaces.insert(namespace.to_owned());
        }
    }

    /// Whether a repository is one of the sources.
    pub(crate) fn has(&self, repository: &str) -> bool {
        let known = self.known.read();
        known.iter().any(|source| source.repository == repository)
    }

    /// Whether a client has an image with this layer of another repository.
    pub(crate) async fn has_others(&self, repository: &str) -> bool {
        let images = self.images_of_clients().await;
        images.iter().any(|image| image.name() != repository)
    }

    async fn images_of_clients(&self) -> Vec<Reference> {
        let namespaces = self.namespaces.read().clone();
        let mut found = Vec::new();
        for namespace in &namespaces {
            // Boxed: calls of containerd are large futures.
            match Box::pin(self.images.images_with(namespace, self.blob.digest)).await {
                Ok(images) => found.extend(images),
                Err(error) => {
                    let error = soci_errors::chain(&error);
                    tracing::debug!(layer = %self.blob.digest, error, "cannot search images for a layer");
                }
            }
        }
        found
    }

    /// Adds the repositories of the other images that clients have with this layer: the image that it
    /// was mounted for may be removed, or its account revoked. Returns whether there was a search.
    async fn add_further(&self) -> bool {
        let mut searched = self.searched.lock().await;
        if searched.is_some_and(|at| at.elapsed() < SEARCH_AGAIN) {
            return false;
        }
        let found = self.images_of_clients().await;
        *searched = Some(Instant::now());
        {
            // Images that are gone make room.
            let mut known = self.known.write();
            if known.len() + found.len() > MAX_REPOSITORIES {
                known.retain(|source| found.iter().any(|image| image.name() == source.repository));
            }
        }
        found.iter().for_each(|image| self.add(image));
        true
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

    /// Reads from a file with the whole blob, before any repository, until the guard is dropped.
    pub(crate) fn read_locally(&self, file: File) -> LocalGuard {
        self.local.read_from(file)
    }

    /// Returns the source at a position, counted round the list.
    fn at(&self, position: usize) -> Option<RemoteBlob> {
        let known = self.known.read();
        let position = position.checked_rem(known.len())?;
        known.get(position).map(|source| source.blob.clone())
    }

    /// Asks the known repositories, the last one that worked first.
    async fn of_repositories(
        &self,
        range: &Range<u64>,
        deadline: Deadline,
        hurry: Hurry,
    ) -> Result<ByteStream, RegistryError> {
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
            let streamed = match hurry {
                Hurry::Reader => source.stream_range(range.clone(), limit).await,
                Hurry::None => source.stream_range_giving_way(range.clone(), limit).await,
            };
            match streamed {
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
        Err(failure.unwrap_or_else(|| Misconfiguration::NoRepository(self.blob.digest).into()))
    }

    fn current(&self) -> Option<RemoteBlob> {
        self.at(self.next.load(Ordering::Relaxed))
    }

    async fn stream(
        &self,
        range: Range<u64>,
        deadline: Deadline,
        hurry: Hurry,
    ) -> Result<ByteStream, RegistryError> {
        let namespaces = || self.namespaces.read().clone();
        let local = self.local.range(range.clone(), &self.images, namespaces);
        if let Some(stream) = local.await {
            return Ok(stream);
        }
        let failure = match self.of_repositories(&range, deadline, hurry).await {
            Ok(stream) => return Ok(stream),
            Err(failure) => failure,
        };
        let before = self.known.read().len();
        // Boxed: calls of containerd are large futures.
        let further = Box::pin(deadline.limit(self.add_further())).await;
        if further == Ok(true) && self.known.read().len() > before {
            let next = self.next.load(Ordering::Relaxed).max(before);
            self.next.store(next, Ordering::Relaxed);
            return self.of_repositories(&range, deadline, hurry).await;
        }
        Err(failure)
    }
}

/// Whether a reader waits for bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hurry {
    Reader,
    None,
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
        self.stream(range, deadline, Hurry::Reader).await
    }

    async fn stream_range_giving_way(
        &self,
        range: Range<u64>,
        deadline: Deadline,
    ) -> Result<ByteStream, RegistryError> {
        self.stream(range, deadline, Hurry::None).await
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

    fn served_damage(&self) {
        if self.local.served_damage() {
            return;
        }
        if let Some(source) = self.current() {
            source.served_damage();
        }
        self.gave_up();
    }

    fn origin(&self) -> String {
        if self.local.is_used() {
            // A registry that does not work holds back no layer that needs none.
            return "containerd".to_owned();
        }
        let blob = self.describe();
        blob.split('/').next().unwrap_or_default().to_owned()
    }

    fn describe(&self) -> String {
        let source = self.current();
        source.map_or_else(|| self.blob.digest.to_string(), |source| source.describe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_dead_repository_leaves_time_for_those_after_it() {
        let deadline = Deadline::after(Duration::from_secs(60));
        for (left, seconds) in [(3, 20), (2, 30), (1, 60)] {
            let share = share(deadline, left).remaining();
            assert_eq!(share, Duration::from_secs(seconds));
        }
    }

    #[tokio::test]
    async fn the_repositories_and_namespaces_of_a_layer_are_bounded() {
        let client = Client::new(
            soci_registry::ClientConfig::default(),
            Arc::new(soci_registry::NoCredentials),
        );
        let blob = Descriptor::of(soci_oci::media_types::OCI_LAYER_GZIP, b"layer");
        let meters = Arc::new(Meters::new().unwrap());
        let sources = Sources::new(client.unwrap(), meters, Arc::default(), blob);
        for number in 0..20 {
            let image = format!("registry.example/app{number}:1");
            for _ in 0..2 {
                sources.add(&image.parse().unwrap());
                sources.add_namespace(&format!("namespace{number}"));
            }
        }
        assert_eq!(sources.known.read().len(), MAX_REPOSITORIES);
        assert_eq!(sources.namespaces.read().len(), MAX_NAMESPACES);
        assert!(sources.has("registry.example/app15"));
        assert!(!sources.has("registry.example/app16"));
    }
}
