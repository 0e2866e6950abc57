//! Which image layers are lazy, and why the others are not: for `soci status`.

use crate::error::SnapshotterError;
use crate::labels;
use crate::metadata::Record;
use crate::snapshotter::Snapshotter;

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
    /// The snapshot.
    pub name: String,
    /// The snapshot below it, or empty.
    pub parent: String,
    /// The image reference that the client gave, if any.
    pub image: Option<String>,
    /// The layer digest that the client gave, if any.
    pub layer: Option<String>,
    /// How the layer is provided.
    pub mode: LayerMode,
    /// Why it is not lazy: the code and the sentence of the [`LayerRefusal`](crate::LayerRefusal).
    /// Kept with the snapshot, across restarts.
    pub reason: Option<(String, String)>,
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
            .map(|(record, lazy)| state(record, lazy))
            .collect())
    }
}

fn state(record: Record, lazy: bool) -> LayerState {
    LayerState {
        image: record.label(labels::IMAGE_REF).map(str::to_owned),
        layer: record.label(labels::LAYER_DIGEST).map(str::to_owned),
        mode: if lazy {
            LayerMode::Lazy
        } else if record.unpacked {
            LayerMode::Local
        } else {
            LayerMode::Deferred
        },
        reason: record
            .fallback
            .map(|fallback| (fallback.code, fallback.reason)),
        name: record.info.name,
        parent: record.info.parent,
    }
}
