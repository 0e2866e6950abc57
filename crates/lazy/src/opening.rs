//! Making a layer ready to be mounted: its zTOC from disk or registry, its place in the layer store,
//! its file tree, the source of its spans.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use soci_fetch::{BackgroundCounts, LazyLayer, SpanFetcher};
use soci_layer::LayerRefusal;
use soci_layer::OverlayXattr;
use soci_layerfs::{Tree, TreeError, TreeOptions};
use soci_oci::{Descriptor, media_types};
use soci_registry::Client;
use soci_store::{LayerKey, LayerStore, StoreError, StoredLayer};
use soci_telemetry::Meters;
use soci_telemetry::metrics::duration_ms;
use soci_ztoc::soci_index::ZtocDescriptor;
use tokio::sync::{RwLock, Semaphore};
use tokio::task::{JoinError, spawn_blocking};

use crate::Artifacts;
use crate::labels::ImageKey;
use crate::sources::Sources;
use crate::ztoc_memory::ZtocMemory;

/// A layer that is ready to be mounted.
pub(crate) struct OpenLayer {
    /// With all extended attributes: whether they are shown is up to the index of each image.
    pub(crate) tree: Arc<Tree>,
    pub(crate) data: Arc<LazyLayer>,
    pub(crate) sources: Sources,
    /// What of the background fetcher's work is in the metrics.
    pub(crate) counted: Mutex<BackgroundCounts>,
}

impl Drop for OpenLayer {
    fn drop(&mut self) {
        self.data.close();
    }
}

/// Opens layers, and removes what was stored of them.
pub(crate) struct Opening {
    pub(crate) client: Client,
    pub(crate) artifacts: Artifacts,
    pub(crate) store: LayerStore,
    pub(crate) fetcher: Arc<SpanFetcher>,
    pub(crate) meters: Arc<Meters>,
    /// How many layers are opened at once.
    pub(crate) slots: Option<Semaphore>,
    /// What their zTOCs may take.
    pub(crate) memory: ZtocMemory,
    /// Where overlayfs looks for the mark of opaque directories.
    pub(crate) overlay_xattr: OverlayXattr,
    /// Shared while a layer's folder is opened, exclusive while one is removed.
    pub(crate) folders: Arc<RwLock<()>>,
}

impl Opening {
    /// Makes a layer of an image ready, from disk alone if its zTOC is there.
    pub(crate) async fn open(
        &self,
        image: &ImageKey,
        ztoc: &ZtocDescriptor,
    ) -> Result<OpenLayer, LayerRefusal> {
        let reference = &image.reference;
        let _slot = match &self.slots {
            // Never closed.
            Some(slots) => slots.acquire().await.ok(),
            None => None,
        };
        let _memory = self.memory.acquire(ztoc.descriptor.size).await?;
        let key = LayerKey {
            layer: ztoc.layer_digest,
            ztoc: ztoc.descriptor.digest,
        };
        let (stored, tree) = match self.open_folder(key, None).await {
            Ok(opened) => opened,
            Err(NotOpened::Store(_)) => {
                let start = Instant::now();
                let blob = self.blob(image, &ztoc.descriptor).await?;
                let label = key.layer.to_string();
                self.meters
                    .took(duration_ms::ZTOC_FETCH, &label, start.elapsed());
                self.open_folder(key, Some(blob))
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
        let sources = Sources::new(self.client.clone(), self.meters.clone(), layer, reference);
        Ok(OpenLayer {
            data: self.fetcher.add_layer(stored, Arc::new(sources.clone())),
            sources,
            tree: Arc::new(tree),
            counted: Mutex::default(),
        })
    }

    /// A zTOC from the content store, else from the registry.
    async fn blob(&self, image: &ImageKey, ztoc: &Descriptor) -> Result<Bytes, LayerRefusal> {
        let namespace = &image.namespace;
        let stored = self.artifacts.get(namespace, &ztoc.digest, ztoc.size).await;
        if let Some(blob) = stored {
            return Ok(blob);
        }
        let fetched = self.client.blob_bytes(&image.reference, ztoc).await;
        let blob = fetched.map_err(|e| {
            LayerRefusal::failed(format!("zTOC {} cannot be fetched: {e}", ztoc.digest))
        })?;
        self.artifacts.keep_ztoc(namespace, ztoc, &blob).await;
        Ok(blob)
    }

    /// Opens the layer's folder, with `blob` as its zTOC if that is not there (or not readable).
    async fn open_folder(
        &self,
        key: LayerKey,
        blob: Option<Bytes>,
    ) -> Result<(Arc<StoredLayer>, Tree), NotOpened> {
        let shared = self.folders.clone().read_owned().await;
        let (store, overlay_xattr) = (self.store.clone(), self.overlay_xattr);
        let meters = self.meters.clone();
        spawn_blocking(move || {
            // Held to the end of the work, also when nobody waits for it any more.
            let _shared = shared;
            let label = key.layer.to_string();
            let start = Instant::now();
            let (stored, toc) =
                store.create_or_open_with_toc(key.layer, key.ztoc, blob.as_deref())?;
            meters.took(duration_ms::ZTOC_UNMARSHAL, &label, start.elapsed());
            soci_faults::point("lazy-layer-stored");
            let tar_size = stored.spans().uncompressed_size();
            let options = TreeOptions {
                overlay_xattr,
                ..TreeOptions::default()
            };
            let start = Instant::now();
            let tree = Tree::build(&toc, tar_size, options)?;
            meters.took(duration_ms::INIT_METADATA_STORE, &label, start.elapsed());
            Ok((stored, tree))
        })
        .await?
    }
}

/// Why a layer's folder does not give a layer.
#[derive(Debug, thiserror::Error)]
enum NotOpened {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error("opening the layer was interrupted: {0}")]
    Interrupted(#[from] JoinError),
}
