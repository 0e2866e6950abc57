//! An image layer that a client prepares.

use soci_containerd::labels::{ChainPosition, PositionError};
use soci_layer::{LayerRefusal, LayerRequest, ParentLayer, Purpose, View};

use crate::directories::Directories;
use crate::error::SnapshotterError;
use crate::labels::{self, Labels};
use crate::metadata::Link;
use crate::snapshot_name;

/// How the snapshotter provides a layer that it commits itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Provided {
    /// Mounted lazily.
    Lazy,
    /// Unpacked, because it cannot be lazy.
    Unpacked,
    /// Unpacked with all layers of its image.
    Eager,
}

/// A Prepare with a target.
#[derive(Clone)]
pub(crate) struct ImageLayer {
    pub(crate) key: String,
    pub(crate) parent: String,
    /// Name of the committed snapshot to make.
    pub(crate) target: String,
    pub(crate) namespace: String,
    pub(crate) labels: Labels,
}

impl ImageLayer {
    /// Checks the arguments of a Prepare with this target.
    pub(crate) fn new(
        namespace: Option<String>,
        key: String,
        parent: String,
        target: String,
        labels: Labels,
    ) -> Result<Self, SnapshotterError> {
        let layer = Self {
            namespace: namespace
                .filter(|namespace| !namespace.is_empty())
                .ok_or(SnapshotterError::NamespaceMissing)?,
            target,
            key,
            parent,
            labels: labels::check(labels)?,
        };
        snapshot_name::check(&layer.key)?;
        snapshot_name::check(&layer.target)?;
        Ok(layer)
    }

    /// Creates the span of the Prepare: its fields are added to every event within, such as a warning
    /// about the registry. It has the level of errors, so that no log level removes them.
    pub(crate) fn span(&self) -> tracing::Span {
        tracing::error_span!(
            "prepare",
            key = self.key,
            namespace = self.namespace,
            image = self.label(labels::IMAGE_REF),
            layerDigest = self.digest(),
        )
    }

    /// Returns the request to mount the layer, or to unpack it, as snapshot `id` on these parents.
    pub(crate) fn request(
        &self,
        directories: &Directories,
        id: u64,
        parents: &[Link],
    ) -> LayerRequest {
        let parents = parents.iter().map(|parent| ParentLayer {
            directory: directories.fs(parent.id),
            lazy: parent.lazy.is_some(),
        });
        LayerRequest {
            purpose: Purpose::ImageLayer,
            namespace: self.namespace.clone(),
            mountpoint: directories.fs(id),
            labels: self.labels.clone(),
            view: View::default(),
            parent: Some(self.parent.clone()),
            snapshot: directories.snapshot(id),
            parents: parents.collect(),
        }
    }

    /// Compares the labels of the Prepare with the names of the snapshots.
    ///
    /// # Errors
    /// The layer does not belong on its parent.
    pub(crate) fn check_position(&self) -> Result<(), LayerRefusal> {
        let Some(position) = ChainPosition::of(&self.target, &self.parent) else {
            // Not made by containerd's unpacker.
            return Ok(());
        };
        position.check(&self.labels).map_err(|error| match error {
            PositionError::Detached { .. } => LayerRefusal::WithoutParent,
            other => LayerRefusal::ForeignLabels {
                reason: format!("the names of the snapshots: {other}"),
            },
        })
    }

    /// Returns the digest of the layer, or an empty string.
    pub(crate) fn digest(&self) -> &str {
        self.label(labels::LAYER_DIGEST)
    }

    /// Returns the labels of the snapshot after the layer was mounted or unpacked.
    pub(crate) fn committed_labels(&self, how: Provided) -> Labels {
        let mut labels = self.labels.clone();
        let mut set = |key: &str, value: &str| {
            labels.insert(key.to_owned(), value.to_owned());
        };
        if how == Provided::Lazy {
            set(labels::REMOTE, labels::REMOTE_VALUE);
        }
        if how != Provided::Eager {
            set(labels::HAS_INDEX, "true");
        }
        set(labels::NAMESPACE, &self.namespace);
        labels
    }

    /// Returns the answer for a target that is committed.
    pub(crate) fn target_exists(&self) -> SnapshotterError {
        SnapshotterError::TargetExists {
            target: self.target.clone(),
        }
    }

    fn label(&self, key: &str) -> &str {
        self.labels.get(key).map_or("", String::as_str)
    }
}
