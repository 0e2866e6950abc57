//! The layer store: a folder per layer and zTOC, shared by all images and namespaces that use the
//! two, kept across restarts.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use std::{fs, io};

use bytes::Bytes;
use soci_dirtree::Reserve;
use soci_oci::Digest;
use soci_ztoc::LayerIndex;

use crate::disk::Disk;
use crate::flusher::Flusher;
use crate::layer_folder::{self, Opened};
use crate::limits::Limits;
use crate::reclaim::Trimmed;
use crate::store_state::StoreState;
use crate::{LayerKey, StoreError, StoredLayer};

/// Where folders go before their content is deleted, so that a crash leaves no half of one.
pub(crate) const REMOVED: &str = ".removed";

/// The configuration of the layer store.
#[derive(Debug, Clone)]
pub struct LayerStoreConfig {
    /// How many bytes of uncompressed data may be stored in open layers, together with what
    /// [`LayerStore::set_elsewhere`] adds; `None`: as many as fit.
    ///
    /// Layers on disk that are not open do not count, since space is freed only in those that are:
    /// at a start every layer that a snapshot uses is opened and all others are removed, so what is
    /// left are layers of snapshots that could not be mounted again. Their spans are kept, because
    /// they may be all that the next start has.
    pub budget_bytes: Option<u64>,
    /// The same limit as a percentage of the size of the file system; 0: none. The lower one counts.
    pub budget_percent: u8,
    /// The part of the disk that is kept free. Below half as much again nothing is fetched in the
    /// background.
    pub reserve: Reserve,
    /// Longest time before a span is made durable.
    pub sync_interval: Duration,
}

impl Default for LayerStoreConfig {
    fn default() -> Self {
        Self {
            budget_bytes: None,
            budget_percent: 0,
            reserve: Reserve::default(),
            sync_interval: Duration::from_secs(1),
        }
    }
}

/// The amount of data in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreUsage {
    /// Uncompressed bytes in the spans of all open layers.
    pub stored_bytes: u64,
    /// The limit, if there is one.
    pub budget_bytes: Option<u64>,
    /// Bytes that other forms of layers take of the limit.
    pub elsewhere_bytes: u64,
    /// Uncompressed bytes that were evicted since the store was opened.
    pub evicted_bytes: u64,
    /// Number of open layers.
    pub open_layers: usize,
}

/// The layer store. Clones are the same store; when the last one is dropped, what was written is made
/// durable.
#[derive(Debug, Clone)]
pub struct LayerStore {
    inner: Arc<OpenStore>,
}

#[derive(Debug)]
struct OpenStore {
    dir: PathBuf,
    shared: Arc<StoreState>,
    removals: AtomicU64,
    _flusher: Flusher,
}

impl LayerStore {
    /// Reads the zTOC of a layer that another process may have open. Changes nothing.
    ///
    /// # Errors
    /// It is not there or not what its digest says.
    pub fn look_at(dir: &Path, key: LayerKey) -> Result<LayerIndex, StoreError> {
        layer_folder::look_at(&dir.join(key.folder_name()), key)
    }

    /// Opens the store in `dir`, which is created if need be, and clears away what a crash left.
    ///
    /// # Errors
    /// The folder cannot be created, read or written to.
    pub fn open(dir: &Path, config: LayerStoreConfig) -> Result<Self, StoreError> {
        use std::os::unix::fs::DirBuilderExt as _;
        let refused = |source: io::Error| match source.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                let path = dir.to_path_buf();
                StoreError::NotWritable { path, source }
            }
            _ => StoreError::io("open the layer store", dir, source),
        };
        let removed = dir.join(REMOVED);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(refused)?;
        match soci_dirtree::remove_path(&removed) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                return Err(refused(error));
            }
            // It takes space, nothing else.
            Err(error) => {
                tracing::warn!(path = %removed.display(), %error, "cannot delete removed layers");
            }
            Ok(()) => {}
        }
        fs::create_dir_all(&removed).map_err(refused)?;
        let disk = Disk::new(dir, config.reserve);
        let limits = Limits {
            bytes: config.budget_bytes,
            percent: config.budget_percent,
        };
        let shared = Arc::new(StoreState::new(limits, disk));
        let flusher = Flusher::start(shared.clone(), config.sync_interval).map_err(refused)?;
        let store = Self {
            inner: Arc::new(OpenStore {
                dir: dir.to_path_buf(),
                shared,
                removals: AtomicU64::new(0),
                _flusher: flusher,
            }),
        };
        for key in store.layers()? {
            // Without its zTOC, a folder was never finished; nothing in it can be used.
            if !layer_folder::is_usable(&store.folder(key)) {
                store.remove(key.layer, key.ztoc)?;
            }
        }
        Ok(store)
    }

    fn folder(&self, key: LayerKey) -> PathBuf {
        self.inner.dir.join(key.folder_name())
    }

    /// Opens a layer, creating it if need be. `ztoc_blob` is needed (and verified) when the zTOC is
    /// not stored yet; without it the answer is then [`StoreError::NotFound`].
    ///
    /// # Errors
    /// The zTOC is missing, damaged or unusable, or the disk is full or fails.
    pub fn create_or_open(
        &self,
        layer: Digest,
        ztoc_digest: Digest,
        ztoc_blob: Option<&[u8]>,
    ) -> Result<Arc<StoredLayer>, StoreError> {
        let key = LayerKey {
            layer,
            ztoc: ztoc_digest,
        };
        Ok(self.opened(key, ztoc_blob.map(Bytes::copy_from_slice))?.0)
    }

    /// As [`LayerStore::create_or_open`], with what was read of the zTOC on the way.
    ///
    /// # Errors
    /// As [`LayerStore::create_or_open`].
    pub fn create_or_open_with_index(
        &self,
        key: LayerKey,
        ztoc_blob: Option<Bytes>,
    ) -> Result<(Arc<StoredLayer>, LayerIndex), StoreError> {
        let (layer, index) = self.opened(key, ztoc_blob)?;
        let index = match index {
            Some(index) => index,
            None => layer.index()?,
        };
        Ok((layer, index))
    }

    /// The layer, and what was read of its zTOC if that had to be read.
    fn opened(
        &self,
        key: LayerKey,
        ztoc_blob: Option<Bytes>,
    ) -> Result<(Arc<StoredLayer>, Option<LayerIndex>), StoreError> {
        let slot = self.inner.shared.slot(key);
        let mut slot = slot.lock();
        if let Some(open) = slot.upgrade() {
            return Ok((open, None));
        }
        let Opened { layer, index } =
            layer_folder::open(&self.folder(key), key, ztoc_blob, &self.inner.shared)?;
        *slot = Arc::downgrade(&layer);
        Ok((layer, Some(index)))
    }

    /// Returns whether anything is stored of the layer, be it open or not.
    #[must_use]
    pub fn is_stored(&self, key: LayerKey) -> bool {
        self.folder(key).exists()
    }

    /// Returns the layer, if it is open.
    #[must_use]
    pub fn get(&self, layer: Digest, ztoc_digest: Digest) -> Option<Arc<StoredLayer>> {
        let key = LayerKey {
            layer,
            ztoc: ztoc_digest,
        };
        let slot = self.inner.shared.layers.lock().get(&key)?.clone();
        slot.lock().upgrade()
    }

    /// Removes a layer, open or not. Callers that still hold it can continue to read. A layer that does
    /// not exist is not an error.
    ///
    /// # Errors
    /// The file system refused.
    pub fn remove(&self, layer: Digest, ztoc_digest: Digest) -> Result<(), StoreError> {
        let key = LayerKey {
            layer,
            ztoc: ztoc_digest,
        };
        let slot = self.inner.shared.slot(key);
        let mut slot = slot.lock();
        if let Some(open) = slot.upgrade() {
            open.removed.store(true, Ordering::Release);
        }
        *slot = std::sync::Weak::new();
        let from = self.folder(key);
        let to = loop {
            let number = self.inner.removals.fetch_add(1, Ordering::Relaxed);
            let to = self.inner.dir.join(REMOVED).join(number.to_string());
            match fs::rename(&from, &to) {
                Ok(()) => break to,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                // An earlier process could not delete what it had moved there.
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                Err(error) => return Err(StoreError::io("remove", &from, error)),
            }
        };
        drop(slot);
        self.inner.shared.forget(key);
        soci_dirtree::remove_path(&to).map_err(|e| StoreError::io("remove", &from, e))
    }

    /// Returns the amount of data in the store.
    #[must_use]
    pub fn usage(&self) -> StoreUsage {
        StoreUsage {
            stored_bytes: self.inner.shared.stored.load(Ordering::Relaxed),
            budget_bytes: self.inner.shared.limit(),
            elsewhere_bytes: self.inner.shared.elsewhere.load(Ordering::Relaxed),
            evicted_bytes: self.inner.shared.evicted.load(Ordering::Relaxed),
            open_layers: self.inner.shared.open_layers().len(),
        }
    }

    /// Sets how many bytes of layers are on disk in another form, for example unpacked. They count
    /// against the budget, but are not evicted.
    pub fn set_elsewhere(&self, bytes: u64) {
        self.inner.shared.elsewhere.store(bytes, Ordering::Relaxed);
    }

    /// Whether more is stored than the limit and the reserve of the disk allow.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.inner.shared.excess() > 0
    }

    /// Evicts what is stored beyond the limit or in the reserve of the disk, as far as it may go.
    ///
    /// Waits for the disk.
    pub fn trim(&self) -> Trimmed {
        self.inner.shared.trim()
    }

    /// Counts the stored spans of all open layers. Looks at each span: for metrics, not for reads.
    #[must_use]
    pub fn stored_spans(&self) -> u64 {
        let layers = self.inner.shared.open_layers();
        layers.iter().map(|layer| layer.stored_spans()).sum()
    }

    /// Lists the layers on disk, open or not, ascending.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn layers(&self) -> Result<Vec<LayerKey>, StoreError> {
        let failed = |e| StoreError::io("list", &self.inner.dir, e);
        let mut keys = Vec::new();
        for entry in fs::read_dir(&self.inner.dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            keys.extend(name.to_str().and_then(LayerKey::from_folder_name));
        }
        keys.sort_unstable();
        Ok(keys)
    }

    /// Makes durable what has been written to all layers.
    ///
    /// # Errors
    /// The first failure; the others are tried all the same.
    pub fn sync(&self) -> Result<(), StoreError> {
        let mut result = Ok(());
        for layer in self.inner.shared.open_layers() {
            result = result.and(layer.sync());
        }
        result
    }
}
