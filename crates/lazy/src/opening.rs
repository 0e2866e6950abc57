//! Making a layer ready to be mounted: its zTOC from disk or registry, its place in the layer store,
//! its file tree, the source of its spans.

use std::sync::Arc;

use bytes::Bytes;
use fetch::{LazyLayer, SpanFetcher};
use layerfs::{Tree, TreeError, TreeOptions};
use oci::{Descriptor, Reference, media_types};
use registry::Client;
use snapshotter::LayerRefusal;
use store::{LayerKey, LayerStore, StoreError, StoredLayer};
use tokio::sync::{RwLock, Semaphore};
use tokio::task::{JoinError, spawn_blocking};
use ztoc::soci_index::ZtocDescriptor;

use crate::sources::Sources;
use crate::ztoc_memory::ZtocMemory;

/// A layer that is ready to be mounted.
pub(crate) struct OpenLayer {
    pub(crate) tree: Arc<Tree>,
    pub(crate) data: Arc<LazyLayer>,
    pub(crate) sources: Sources,
}

impl Drop for OpenLayer {
    fn drop(&mut self) {
        self.data.close();
    }
}

/// Opens layers, and removes what was stored of them.
pub(crate) struct Opening {
    pub(crate) client: Client,
    pub(crate) store: LayerStore,
    pub(crate) fetcher: Arc<SpanFetcher>,
    /// How many layers are opened at once.
    pub(crate) slots: Option<Semaphore>,
    /// What their zTOCs may take.
    pub(crate) memory: ZtocMemory,
    /// Shared while a layer's folder is opened, exclusive while one is removed.
    pub(crate) folders: Arc<RwLock<()>>,
}

impl Opening {
    /// Makes a layer of the image at `reference` ready, from disk alone if its zTOC is there.
    pub(crate) async fn open(
        &self,
        reference: &Reference,
        ztoc: &ZtocDescriptor,
    ) -> Result<OpenLayer, LayerRefusal> {
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
        let (stored, tree) = match self.open_folder(key, None, ztoc.disable_xattrs).await {
            Ok(opened) => opened,
            Err(NotOpened::Store(_)) => {
                let blob = self
                    .client
                    .blob_bytes(reference, &ztoc.descriptor)
                    .await
                    .map_err(|e| {
                        LayerRefusal::failed(format_args!(
                            "zTOC {} cannot be fetched: {e}",
                            ztoc.descriptor.digest
                        ))
                    })?;
                self.open_folder(key, Some(blob), ztoc.disable_xattrs)
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
        let sources = Sources::new(self.client.clone(), layer, reference);
        Ok(OpenLayer {
            data: self.fetcher.add_layer(stored, Arc::new(sources.clone())),
            sources,
            tree: Arc::new(tree),
        })
    }

    /// Opens the layer's folder, with `blob` as its zTOC if that is not there (or not readable).
    async fn open_folder(
        &self,
        key: LayerKey,
        blob: Option<Bytes>,
        disable_xattrs: bool,
    ) -> Result<(Arc<StoredLayer>, Tree), NotOpened> {
        let shared = self.folders.clone().read_owned().await;
        let store = self.store.clone();
        spawn_blocking(move || {
            // Held to the end of the work, also when nobody waits for it any more.
            let _shared = shared;
            let (stored, toc) =
                store.create_or_open_with_toc(key.layer, key.ztoc, blob.as_deref())?;
            faults::point("lazy-layer-stored");
            let tar_size = stored.spans().uncompressed_size();
            let options = TreeOptions {
                disable_xattrs,
                ..TreeOptions::default()
            };
            let tree = Tree::build(&toc, tar_size, options)?;
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
