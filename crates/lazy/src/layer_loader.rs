//! Loads a layer: its zTOC from disk or registry, its directory in the layer store, its file tree,
//! the source of its spans.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use soci_discovery::refusal_without_ztoc;
use soci_fetch::SpanFetcher;
use soci_layer::{Cause, LayerRefusal, OverlayXattr};
use soci_layerfs::{Cancelled, Tree, TreeError};
use soci_oci::{Descriptor, media_types};
use soci_registry::Client;
use soci_store::{LayerKey, LayerStore, StoreError, StoredLayer};
use soci_task::{Interrupted, KeyedLocks};
use soci_telemetry::Meters;
use soci_telemetry::metrics::duration_ms;
use soci_ztoc::soci_index::ZtocDescriptor;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::Artifacts;
use crate::image_layer::ImageKey;
use crate::image_store::ImageStore;
use crate::open_layer::OpenLayer;
use crate::outages::Outages;
use crate::sources::Sources;
use crate::tree_memory::TreeMemory;
use crate::verdict::Verification;
use crate::ztoc_memory::ZtocMemory;

/// Loads layers.
pub(crate) struct LayerLoader {
    pub(crate) client: Client,
    pub(crate) artifacts: Artifacts,
    /// The image store of the client, which may have zTOCs and layers.
    pub(crate) images: Arc<ImageStore>,
    pub(crate) outages: Arc<Outages>,
    pub(crate) store: LayerStore,
    pub(crate) fetcher: Arc<SpanFetcher>,
    pub(crate) meters: Arc<Meters>,
    /// Limits how many layers are loaded at a time; `None`: no limit.
    pub(crate) slots: Option<Semaphore>,
    pub(crate) memory: ZtocMemory,
    /// Time after which fetching a zTOC is given up.
    pub(crate) time_limit: Duration,
    /// The attributes in which overlayfs looks for its marks.
    pub(crate) overlay_xattr: OverlayXattr,
    pub(crate) trees: TreeMemory,
    /// Held while a layer's directory is opened, and while it is removed.
    pub(crate) directories: Arc<KeyedLocks<LayerKey>>,
}

/// Returns the key of the layer that a zTOC describes.
pub(crate) fn layer_key(ztoc: &ZtocDescriptor) -> LayerKey {
    LayerKey {
        layer: ztoc.layer_digest,
        ztoc: ztoc.descriptor.digest,
    }
}

/// Drives a future until `until`, if it is set; `None`: it has not ended then.
pub(crate) async fn limited<T>(
    until: Option<Instant>,
    future: impl Future<Output = T>,
) -> Option<T> {
    match until {
        Some(until) => tokio::time::timeout_at(until, future).await.ok(),
        None => Some(future.await),
    }
}

impl LayerLoader {
    /// Loads a layer of an image, from disk alone if its zTOC is stored.
    ///
    /// `namespace` is the client's; empty if it is not known. Waiting for other layers and for the
    /// registry ends at `until`; work on this machine, whose disk and cores may be busy, does not.
    pub(crate) async fn load(
        &self,
        namespace: &str,
        image: &ImageKey,
        ztoc: &ZtocDescriptor,
        until: Option<Instant>,
    ) -> Result<OpenLayer, LayerRefusal> {
        let turn = async {
            let slot = match &self.slots {
                // The semaphore is never closed.
                Some(slots) => slots.acquire().await.ok(),
                None => None,
            };
            let memory = self.memory.acquire(ztoc.descriptor.size).await?;
            Ok::<_, LayerRefusal>((slot, Arc::new(memory)))
        };
        let no_turn = || {
            let seconds = self.time_limit.as_secs();
            Err(LayerRefusal::failed(LoadError::NoTurn { seconds }))
        };
        let (_slot, memory) = limited(until, turn).await.unwrap_or_else(no_turn)?;
        let key = layer_key(ztoc);
        let (stored, tree, verification) = match self.open_directory(key, None, &memory).await {
            Ok(opened) => opened,
            Err(LoadError::Store(_)) => {
                let start = Instant::now();
                let blob = self.ztoc(namespace, image, &ztoc.descriptor, until).await?;
                let label = key.layer.to_string();
                self.meters
                    .took(duration_ms::ZTOC_FETCH, &label, start.elapsed());
                self.open_directory(key, Some(blob), &memory)
                    .await
                    .map_err(LayerRefusal::failed)?
            }
            Err(error) => return Err(LayerRefusal::failed(error)),
        };
        let layer = Descriptor::new(
            media_types::OCI_LAYER_GZIP,
            key.layer,
            stored.spans().compressed_size(),
        );
        let (client, meters) = (self.client.clone(), self.meters.clone());
        let sources = Sources::new(client, meters, self.images.clone(), layer);
        let held = self.trees.take(image.manifest, tree.memory());
        Ok(OpenLayer {
            _memory: held.map_err(LayerRefusal::failed)?,
            data: self.fetcher.add_layer(stored, Arc::new(sources.clone())),
            sources,
            tree: Arc::new(tree),
            watch: Arc::default(),
            verification,
            counted: Mutex::default(),
        })
    }

    /// Reads a zTOC from the content store or from the client's, else from the registry unless that did
    /// not work a moment ago.
    async fn ztoc(
        &self,
        namespace: &str,
        image: &ImageKey,
        ztoc: &Descriptor,
        until: Option<Instant>,
    ) -> Result<Bytes, LayerRefusal> {
        let (space, digest) = (&image.namespace, ztoc.digest);
        if let Some(blob) = self.artifacts.get(space, &digest, ztoc.size).await {
            return Ok(blob);
        }
        if let Some(blob) = self.images.blob(namespace, digest, ztoc.size).await {
            return Ok(blob);
        }
        let (reference, manifest) = (&image.reference, image.manifest);
        self.outages.check(reference, manifest)?;
        let fetch = self.client.blob_bytes(reference, ztoc);
        let until = until.unwrap_or_else(|| Instant::now() + self.time_limit);
        let fetch = tokio::time::timeout_at(until, fetch);
        // The client downloads it as well, as a child of the image's index, and began before.
        let fetched = tokio::select! {
            fetched = fetch => fetched,
            blob = self.images.appears(namespace, digest, ztoc.size) => return Ok(blob),
        };
        let seconds = self.time_limit.as_secs();
        let fetched = match fetched {
            Ok(fetched) => fetched.map_err(|error| refusal_without_ztoc(digest, error)),
            Err(_) => Err(LayerRefusal::RegistryUnavailable {
                source: Arc::new(LoadError::TooSlow { digest, seconds }),
            }),
        };
        let blob = fetched.inspect_err(|refusal| {
            if let LayerRefusal::RegistryUnavailable { source } = refusal {
                self.outages.note(reference, manifest, source.clone());
            }
        })?;
        self.outages.over(reference, manifest);
        self.artifacts.keep_ztoc(space, ztoc, &blob).await;
        Ok(blob)
    }

    /// The refusal of a layer whose registry did not answer in time, which is noted.
    pub(crate) fn too_slow(&self, image: &ImageKey) -> LayerRefusal {
        let seconds = self.time_limit.as_secs();
        let source: Cause = Arc::new(LoadError::NoAnswer { seconds });
        let outages = &self.outages;
        outages.note(&image.reference, image.manifest, source.clone());
        LayerRefusal::RegistryUnavailable { source }
    }

    /// Opens the layer's directory, with `blob` as its zTOC if that is missing or unreadable there.
    async fn open_directory(
        &self,
        key: LayerKey,
        blob: Option<Bytes>,
        memory: &Arc<OwnedSemaphorePermit>,
    ) -> Result<(Arc<StoredLayer>, Tree, Verification), LoadError> {
        let alone = self.directories.lock(key).await;
        let cancelled = Cancelled::default();
        // A caller that has waited long enough drops this future: the work ends as well.
        let _wanted = cancelled.on_drop();
        let options = self.trees.options(self.overlay_xattr, cancelled);
        let (store, memory) = (self.store.clone(), memory.clone());
        let meters = self.meters.clone();
        soci_task::blocking(move || {
            // Held to the end of the work, even if the caller is dropped.
            let _held = (alone, memory);
            let label = key.layer.to_string();
            let start = Instant::now();
            let (stored, index) = store.create_or_open_with_index(key, blob)?;
            meters.took(duration_ms::ZTOC_UNMARSHAL, &label, start.elapsed());
            soci_faults::point("lazy-layer-stored");
            let start = Instant::now();
            let tree = Tree::of_index(&index, options)?;
            meters.took(duration_ms::INIT_METADATA_STORE, &label, start.elapsed());
            let verification = Verification::of(&stored);
            Ok((stored, tree, verification))
        })
        .await
    }
}

/// Why a layer cannot be loaded.
#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error("zTOC {digest} did not arrive within mount_timeout_sec = {seconds}")]
    TooSlow {
        digest: soci_oci::Digest,
        seconds: u64,
    },
    #[error("the registry did not answer within mount_timeout_sec = {seconds}")]
    NoAnswer { seconds: u64 },
    #[error("other layers were being opened for all of mount_timeout_sec = {seconds}")]
    NoTurn { seconds: u64 },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error("cannot open the stored layer: {0}")]
    Interrupted(#[from] Interrupted),
}
