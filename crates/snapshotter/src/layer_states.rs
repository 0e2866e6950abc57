//! Which image layers are lazy, and why the others are not: for `soci status` and metrics.

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::SnapshotterError;
use crate::labels;
use crate::layer_mounts::LayerMounts;
use crate::metadata::Record;
use crate::refusal::RefusalReason;
use crate::snapshot_dir::SnapshotDir;
use crate::store::SnapshotStore;

/// How a layer is provided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerMode {
    /// Mounted by the provider; read on demand.
    Lazy,
    /// Fetched and unpacked by the snapshotter.
    Local,
    /// Pulled and unpacked by the client.
    Deferred,
}

/// An image layer that a client prepared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerState {
    /// Name of the directory `snapshots/<id>`.
    pub id: u64,
    /// Name of the snapshot.
    pub name: String,
    /// Name of the snapshot below it, or empty.
    pub parent: String,
    /// Reference of the image, from the client's labels.
    pub image: Option<String>,
    /// Digest of the image's manifest, from the client's labels.
    pub manifest: Option<String>,
    /// Digest of the layer, from the client's labels.
    pub layer: Option<String>,
    /// Compressed size in bytes, from the client's labels.
    pub size: Option<u64>,
    /// containerd's namespace, for layers that the snapshotter committed.
    pub namespace: Option<String>,
    /// How the layer is provided.
    pub mode: LayerMode,
    /// Why it is not lazy. Recorded with the snapshot, across restarts.
    pub reason: Option<RefusalReason>,
    /// Where a lazy layer is mounted.
    pub mountpoint: Option<PathBuf>,
    /// Why a lazy layer could not be restored at the start.
    pub broken: Option<RefusalReason>,
}

/// Number of image layers, by how they are provided.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LayerCounts {
    /// Lazy layers.
    pub lazy: u64,
    /// Layers that the snapshotter unpacked.
    pub local: u64,
    /// Layers that were left to the client.
    pub deferred: u64,
}

/// Lists the image layers that exist now.
pub(crate) async fn layers(mounts: &LayerMounts) -> Result<Vec<LayerState>, SnapshotterError> {
    let layers = mounts.store.blocking(|store| Ok(store.metadata.layers()?));
    let layers = layers.await?.into_iter();
    Ok(layers
        .map(|(record, lazy)| state(mounts, record, lazy))
        .collect())
}

fn state(mounts: &LayerMounts, record: Record, lazy: bool) -> LayerState {
    let label = |key| record.prepare_label(key).map(str::to_owned);
    let dir = SnapshotDir::Snapshot(record.id);
    LayerState {
        id: record.id,
        image: label(labels::IMAGE_REF),
        manifest: label(labels::MANIFEST_DIGEST),
        layer: label(labels::LAYER_DIGEST),
        size: label(labels::LAYER_SIZE).and_then(|size| size.parse().ok()),
        namespace: label(labels::NAMESPACE),
        mode: mode(&record, lazy),
        mountpoint: lazy.then(|| mounts.store.directories.fs(dir)),
        broken: mounts.broken(dir),
        reason: record.fallback.map(RefusalReason::from),
        name: record.info.name,
        parent: record.info.parent,
    }
}

const fn mode(record: &Record, lazy: bool) -> LayerMode {
    match lazy {
        true => LayerMode::Lazy,
        false if record.unpacked => LayerMode::Local,
        false => LayerMode::Deferred,
    }
}

/// The counts of layers, with the number of metadata changes at which they were counted.
#[derive(Debug, Default)]
pub(crate) struct CountCache(Mutex<Option<(u64, LayerCounts)>>);

impl CountCache {
    /// Returns the counts unless the metadata has changed since.
    pub(crate) fn current(&self, store: &SnapshotStore) -> Option<LayerCounts> {
        let (changes, counts) = (*self.0.lock())?;
        (changes == store.metadata.changes()).then_some(counts)
    }

    /// Counts the image layers.
    pub(crate) async fn update(
        &self,
        store: &Arc<SnapshotStore>,
    ) -> Result<LayerCounts, SnapshotterError> {
        let changes = store.metadata.changes();
        let layers = store.blocking(|store| Ok(store.metadata.layers()?)).await?;
        let mut counts = LayerCounts::default();
        for (record, lazy) in &layers {
            match mode(record, *lazy) {
                LayerMode::Lazy => counts.lazy += 1,
                LayerMode::Local => counts.local += 1,
                LayerMode::Deferred => counts.deferred += 1,
            }
        }
        *self.0.lock() = Some((changes, counts));
        Ok(counts)
    }
}
