//! The layer store.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use oci::Digest;

use crate::{StoreError, StoredLayer};

/// What names a stored layer: the layer, and the zTOC through which it is read. A zTOC is only as
/// trustworthy as the index that named it, so that two images that use one layer through different
/// zTOCs must not share data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LayerKey {
    /// The digest of the compressed layer.
    pub layer: Digest,
    /// The digest of the zTOC.
    pub ztoc: Digest,
}

/// How the store behaves.
#[derive(Debug, Clone)]
pub struct LayerStoreConfig {
    /// How many bytes of uncompressed data may be stored in all; `None`: as many as fit.
    pub budget_bytes: Option<u64>,
    /// How long a span may wait before it is made durable.
    pub sync_interval: Duration,
}

impl Default for LayerStoreConfig {
    fn default() -> Self {
        Self {
            budget_bytes: None,
            sync_interval: Duration::from_secs(1),
        }
    }
}

/// What is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Uncompressed bytes in the spans of all open layers.
    pub stored_bytes: u64,
    /// The limit, if there is one.
    pub budget_bytes: Option<u64>,
    /// How many layers are open.
    pub open_layers: usize,
}

/// The layer store. Clones are the same store.
#[derive(Debug, Clone)]
pub struct LayerStore {}

impl LayerStore {
    /// Opens the store in `dir`, which is created if need be, and clears away what a crash left.
    ///
    /// # Errors
    /// The folder cannot be created, read or written to.
    pub fn open(_dir: &Path, _config: LayerStoreConfig) -> Result<Self, StoreError> {
        todo!()
    }

    /// Opens a layer, creating it if need be. `ztoc_blob` is needed (and verified) when the zTOC is not stored yet;
    /// without it the answer is then [`StoreError::NotFound`].
    ///
    /// # Errors
    /// The zTOC is missing, damaged or unusable, or the disk is full or fails.
    pub fn create_or_open(
        &self,
        _layer: Digest,
        _ztoc_digest: Digest,
        _ztoc_blob: Option<&[u8]>,
    ) -> Result<Arc<StoredLayer>, StoreError> {
        todo!()
    }

    /// The layer, if it is open.
    #[must_use]
    pub fn get(&self, _layer: Digest, _ztoc_digest: Digest) -> Option<Arc<StoredLayer>> {
        todo!()
    }

    /// Removes a layer, open or not. Who still holds it can go on reading. Nothing to remove is no error.
    ///
    /// # Errors
    /// The file system refused.
    pub fn remove(&self, _layer: Digest, _ztoc_digest: Digest) -> Result<(), StoreError> {
        todo!()
    }

    /// What is stored.
    #[must_use]
    pub fn usage(&self) -> Usage {
        todo!()
    }

    /// The layers on disk, open or not.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn layers(&self) -> Result<Vec<LayerKey>, StoreError> {
        todo!()
    }

    /// Makes durable what has been written to all layers.
    ///
    /// # Errors
    /// The first failure; the others are tried all the same.
    pub fn sync(&self) -> Result<(), StoreError> {
        todo!()
    }
}
