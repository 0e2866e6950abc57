//! Which image layers are lazy, and why the others are not: for `soci status` and metrics.

use std::path::PathBuf;

use crate::error::SnapshotterError;
use crate::labels;
use crate::metadata::Record;
use crate::place::Place;
use crate::snapshotter::{Inner, Snapshotter};
use soci_layer::LayerRefusal;

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

/// One image layer that a client prepared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerState {
    /// Names the directory `snapshots/<id>`.
    pub id: u64,
    /// The snapshot.
    pub name: String,
    /// The snapshot below it, or empty.
    pub parent: String,
    /// The image reference that the client gave, if any.
    pub image: Option<String>,
    /// The digest of the image manifest that the client gave, if any.
    pub manifest: Option<String>,
    /// The layer digest that the client gave, if any.
    pub layer: Option<String>,
    /// The compressed size in bytes that the client gave, if any.
    pub size: Option<u64>,
    /// containerd's namespace; known of the layers that Prepare committed.
    pub namespace: Option<String>,
    /// How the layer is provided.
    pub mode: LayerMode,
    /// Why it is not lazy: the code and the sentence of the [`LayerRefusal`].
    /// Kept with the snapshot, across restarts.
    pub reason: Option<(String, String)>,
    /// Where a lazy layer is mounted.
    pub mountpoint: Option<PathBuf>,
    /// Why a lazy layer could not be mounted again at the start: code and sentence.
    pub broken: Option<(String, String)>,
}

/// How many image layers there are, by how they are provided.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LayerCounts {
    /// Lazy ones.
    pub lazy: u64,
    /// Unpacked by us.
    pub local: u64,
    /// Left to the client.
    pub deferred: u64,
}

impl Snapshotter {
    /// The image layers that exist now.
    ///
    /// # Errors
    /// The metadata cannot be read, or the snapshotter is closed.
    pub async fn layers(&self) -> Result<Vec<LayerState>, SnapshotterError> {
        let _call = self.inner.enter()?;
        let layers = self.inner.blocking(|inner| inner.metadata.layers()).await?;
        Ok(layers
            .into_iter()
            .map(|(record, lazy)| self.inner.layer_state(record, lazy))
            .collect())
    }

    /// How many image layers exist now. Looks at the metadata only after a change of it.
    ///
    /// # Errors
    /// As [`Snapshotter::layers`].
    pub async fn layer_counts(&self) -> Result<LayerCounts, SnapshotterError> {
        let changes = self.inner.metadata.changes();
        let known = *self.inner.layer_counts.lock();
        if let Some((at, counts)) = known
            && at == changes
        {
            return Ok(counts);
        }
        let _call = self.inner.enter()?;
        let layers = self.inner.blocking(|inner| inner.metadata.layers()).await?;
        let mut counts = LayerCounts::default();
        for (record, lazy) in &layers {
            match mode(record, *lazy) {
                LayerMode::Lazy => counts.lazy += 1,
                LayerMode::Local => counts.local += 1,
                LayerMode::Deferred => counts.deferred += 1,
            }
        }
        *self.inner.layer_counts.lock() = Some((changes, counts));
        Ok(counts)
    }

    /// The lazy layers that could not be mounted again at the start, nor since.
    #[must_use]
    pub fn broken_layers(&self) -> u64 {
        self.inner.broken.lock().len() as u64
    }
}

/// Who made it what it is.
fn mode(record: &Record, lazy: bool) -> LayerMode {
    match lazy {
        true => LayerMode::Lazy,
        false if record.unpacked => LayerMode::Local,
        false => LayerMode::Deferred,
    }
}

impl Inner {
    fn layer_state(&self, record: Record, lazy: bool) -> LayerState {
        let label = |key| record.prepare_label(key).map(str::to_owned);
        let said =
            |refusal: &LayerRefusal| (refusal.code().to_owned(), soci_errors::chain(refusal));
        let place = Place::Snapshot(record.id);
        LayerState {
            id: record.id,
            image: label(labels::IMAGE_REF),
            manifest: label(labels::MANIFEST_DIGEST),
            layer: label(labels::LAYER_DIGEST),
            size: label(labels::LAYER_SIZE).and_then(|size| size.parse().ok()),
            namespace: label(labels::NAMESPACE),
            mode: mode(&record, lazy),
            mountpoint: lazy.then(|| self.directories.fs(place)),
            broken: self.broken.lock().get(&place).map(said),
            reason: record
                .fallback
                .map(|fallback| (fallback.code, fallback.reason)),
            name: record.info.name,
            parent: record.info.parent,
        }
    }
}
