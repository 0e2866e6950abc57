//! The SOCI indexes of images: in memory, on disk, in the content store, at the registry.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use soci_discovery::{ImageQuery, MAX_INDEX_SIZE, ManifestSource, Policy, RegistryManifests};
use soci_layer::{Cause, LayerRefusal};
use soci_oci::{Descriptor, Digest};
use soci_registry::{Client, RegistryError};
use soci_telemetry::Meters;
use soci_telemetry::metrics::duration_ms;
use soci_ztoc::soci_index::SociIndex;
use tokio::time::Instant;

use crate::Artifacts;
use crate::image_layer::ImageKey;
use crate::image_store::ImageStore;
use crate::index_files::{FoundIndex, IndexFiles, Origin};
use crate::lookup_cache::LookupCache;
use crate::outages::Outages;

/// Time for which the layers of an image that are restored together share a failed look-up.
const RETRY_RESTORE: Duration = Duration::from_secs(2);

/// Finds indexes, and keeps those of images in use.
pub(crate) struct IndexCache {
    pub(crate) client: Client,
    pub(crate) artifacts: Artifacts,
    pub(crate) images: Arc<ImageStore>,
    pub(crate) outages: Arc<Outages>,
    pub(crate) files: IndexFiles,
    pub(crate) lookups: LookupCache<FoundIndex>,
    pub(crate) meters: Arc<Meters>,
    pub(crate) policy: Policy,
    /// Time after which a look-up fails.
    pub(crate) time_limit: Duration,
}

impl IndexCache {
    /// Returns the index of an image whose layer is prepared.
    pub(crate) async fn find(
        &self,
        namespace: &str,
        image: &ImageKey,
    ) -> Result<Arc<FoundIndex>, LayerRefusal> {
        self.lookups
            .get(image, self.look_up(namespace, image))
            .await
    }

    /// Returns the index of an image that was mounted before: the look-up succeeded once, so a
    /// failure is retried soon.
    pub(crate) async fn find_again(
        &self,
        namespace: &str,
        image: &ImageKey,
    ) -> Result<Arc<FoundIndex>, LayerRefusal> {
        let find = self.look_up(namespace, image);
        let lookups = &self.lookups;
        lookups.get_unless_older(image, RETRY_RESTORE, find).await
    }

    /// Drops an index that no layer uses any more, in memory and on disk: of all images that it was
    /// found for, or one of them would find it in memory and not after the next restart.
    pub(crate) async fn forget(&self, index: Digest) {
        self.meters.forget_layer(&index.to_string());
        self.lookups.forget(|found| found.digest == index);
        let files = self.files.clone();
        // Failures are logged there.
        let _ = soci_task::run(move || files.forget(&index)).await;
    }

    async fn look_up(&self, namespace: &str, image: &ImageKey) -> Result<FoundIndex, LayerRefusal> {
        // One that was found before is read from disk, so that a restart needs no registry, and without a
        // limit, which a busy machine could exceed.
        let (files, key) = (self.files.clone(), image.clone());
        let loaded = soci_task::run(move || files.load(&key)).await;
        if let Ok(Some(found)) = loaded {
            return Ok(found);
        }
        let found = tokio::time::timeout(self.time_limit, self.fetch(namespace, image)).await;
        let found = found.unwrap_or_else(|_| {
            let seconds = self.time_limit.as_secs();
            let cause = format!("no response within mount_timeout_sec = {seconds}");
            Err(LayerRefusal::IndexUnavailable {
                source: Cause::from(Box::<dyn std::error::Error + Send + Sync>::from(cause)),
                unreachable: true,
            })
        });
        if let Err(LayerRefusal::IndexUnavailable {
            source,
            unreachable: true,
        }) = &found
        {
            let outages = &self.outages;
            outages.note(&image.reference, image.manifest, source.clone());
        }
        found
    }

    /// Finds an index in the content store or at the registry, and stores it.
    async fn fetch(&self, namespace: &str, image: &ImageKey) -> Result<FoundIndex, LayerRefusal> {
        let start = Instant::now();
        let manifests = Manifests {
            registry: RegistryManifests::new(self.client.clone(), image.reference.clone()),
            artifacts: &self.artifacts,
            images: &self.images,
            namespace,
            image,
            fetched: AtomicBool::new(false),
        };
        let query = ImageQuery {
            digest: image.manifest,
            manifest: None,
            explicit: image.explicit_index,
        };
        let found = soci_discovery::find(&manifests, query, self.policy).await?;
        let (digest, index, bytes) = (found.digest, found.index, found.bytes);
        let mut origin = Origin::Stored;
        if manifests.fetched.into_inner() {
            origin = Origin::Fetched;
            // The label is the digest of the index, as in v0.15.
            let label = digest.to_string();
            self.meters
                .took(duration_ms::SOCI_INDEX_FETCH, &label, start.elapsed());
            soci_faults::point("lazy-index-fetched");
            let namespace = &image.namespace;
            let keep = self.artifacts.keep_index(namespace, digest, &index, &bytes);
            keep.await;
        }
        let (files, key) = (self.files.clone(), image.clone());
        // Failures are logged there.
        let _ = soci_task::run(move || files.save(&key, digest, &bytes, origin)).await;
        let ignored = index.unused_ztocs();
        if ignored > 0 {
            tracing::warn!(index = %digest, ignored, "an index lists layers more than once");
        }
        Ok(FoundIndex { digest, index })
    }
}

/// The manifests of an image: its own comes from containerd if that has it, SOCI indexes come from the content store if it has them.
struct Manifests<'a> {
    registry: RegistryManifests,
    artifacts: &'a Artifacts,
    /// The image store of the client, which has fetched the manifest already.
    images: &'a ImageStore,
    namespace: &'a str,
    image: &'a ImageKey,
    /// Whether the index came from the registry.
    fetched: AtomicBool,
}

#[async_trait]
impl ManifestSource for Manifests<'_> {
    async fn manifest(&self, digest: Digest) -> Result<Bytes, RegistryError> {
        if let Ok(Some(stored)) = self.images.manifest(self.namespace, digest).await {
            return Ok(stored);
        }
        self.registry.manifest(digest).await
    }

    async fn index(&self, digest: Digest) -> Result<Bytes, RegistryError> {
        let namespace = &self.image.namespace;
        let stored = self.artifacts.get(namespace, &digest, MAX_INDEX_SIZE).await;
        if let Some(bytes) = stored
            && SociIndex::parse(&bytes).is_ok()
        {
            return Ok(bytes);
        }
        // An image that was imported with its index.
        if let Ok(Some(bytes)) = self.images.manifest(self.namespace, digest).await
            && SociIndex::parse(&bytes).is_ok()
        {
            return Ok(bytes);
        }
        tracing::info!(
            digest = %digest,
            image = %self.image.reference,
            "fetching SOCI artifacts using index descriptor"
        );
        self.fetched.store(true, Ordering::Relaxed);
        self.registry.index(digest).await
    }

    async fn referrers(
        &self,
        subject: Digest,
        artifact_type: &str,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        self.registry.referrers(subject, artifact_type).await
    }
}
