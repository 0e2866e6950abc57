//! Removes stored layers and indexes that are not in use.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;
use soci_oci::Digest;
use soci_store::{LayerKey, LayerStore, StoreError};
use soci_task::{Interrupted, KeyedLocks};
use soci_telemetry::Meters;

use crate::image_layer::{ImageKey, ImageLayer};
use crate::index_files::IndexFiles;
use crate::lease::LeaseMap;
use crate::open_layer::OpenLayer;

/// Removes what is stored of layers that are not in use.
pub(crate) struct Sweeper {
    pub(crate) store: LayerStore,
    pub(crate) leases: Arc<LeaseMap<OpenLayer>>,
    pub(crate) indexes: IndexFiles,
    pub(crate) meters: Arc<Meters>,
    /// Held while a layer's directory is opened, and while it is removed.
    pub(crate) directories: Arc<KeyedLocks<LayerKey>>,
    /// Layers and images requested since start-up, so that the sweep spares them. `None` after it.
    pub(crate) requested: Mutex<Option<Requested>>,
}

/// Layers and images that were requested.
#[derive(Default)]
pub(crate) struct Requested {
    pub(crate) layers: HashSet<Digest>,
    pub(crate) images: HashSet<ImageKey>,
}

/// Why stored layers cannot be listed or removed.
#[derive(Debug, thiserror::Error)]
enum SweepError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl Sweeper {
    /// Protects a layer and its image from the sweep.
    pub(crate) fn spare(&self, layer: &ImageLayer) {
        if let Some(requested) = self.requested.lock().as_mut() {
            requested.layers.insert(layer.layer);
            requested.images.insert(layer.image.clone());
        }
    }

    /// Whether anything of a layer is stored; true if that cannot be found out.
    pub(crate) async fn is_stored(&self, key: LayerKey) -> bool {
        let store = self.store.clone();
        let stored = soci_task::run(move || store.is_stored(key));
        stored.await.unwrap_or(true)
    }

    /// Removes what is stored of a layer unless the layer is in use.
    pub(crate) async fn remove_unused(&self, key: LayerKey) {
        let _alone = self.directories.lock(key).await;
        if self.leases.in_use(&key) {
            return;
        }
        if !self.leases.any_in_use(|other| other.layer == key.layer) {
            self.meters.forget_layer(&key.layer.to_string());
        }
        let store = self.store.clone();
        let removed = soci_task::blocking(move || {
            store.remove(key.layer, key.ztoc).map_err(SweepError::from)
        });
        match removed.await {
            Ok(()) => soci_faults::point("lazy-layer-removed"),
            Err(error) => {
                tracing::warn!(layer = %key.layer, error = %error, "cannot remove a stored layer");
            }
        }
    }

    /// Removes stored layers and indexes that no snapshot has requested, once the snapshots of an
    /// earlier run have been restored. From then on they are removed with their last user.
    pub(crate) async fn sweep(self: &Arc<Self>) {
        let store = self.store.clone();
        let stored = soci_task::blocking(move || store.layers().map_err(SweepError::from)).await;
        let stored = match stored {
            Ok(stored) => stored,
            Err(error) => {
                tracing::warn!(error = %error, "cannot list stored layers; none is swept");
                return;
            }
        };
        for key in stored {
            if !self.is_requested(&key.layer) {
                tracing::info!(layer = %key.layer, "removing a stored layer that no snapshot uses");
                self.remove_unused(key).await;
            }
        }
        let sweeper = self.clone();
        // Failures are logged there.
        let _ = soci_task::run(move || {
            // Locked to the end: an image that is requested now must not lose its index half-way.
            let mut requested = sweeper.requested.lock();
            if let Some(requested) = requested.take() {
                sweeper.indexes.sweep(&requested.images);
            }
        })
        .await;
    }

    fn is_requested(&self, layer: &Digest) -> bool {
        let requested = self.requested.lock();
        requested
            .as_ref()
            .is_none_or(|requested| requested.layers.contains(layer))
    }
}
