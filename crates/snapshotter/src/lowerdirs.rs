//! The lower directories of a snapshot: those of its parents, or others that are made for this
//! snapshot alone.

use soci_layer::{IdMaps, LayerRequest, Purpose, View};

use crate::directories::Directories;
use crate::labels;
use crate::metadata::{LazyRecord, Link};
use crate::snapshot_dir::SnapshotDir;

/// The directories in which a snapshot sees its parents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LowerDirs {
    /// The parents' own directories.
    Shared,
    /// A directory of this snapshot for each parent, with translated owners.
    IdMapped {
        snapshot: u64,
        /// The translation.
        maps: IdMaps,
    },
    /// A directory of this snapshot for each lazy parent, in which requests for extended attributes
    /// are answered.
    ///
    /// The layer's own mount answers them with ENOSYS if the layer has none, so that the kernel stops
    /// asking: each look-up by overlayfs would be slower otherwise. A client that compares snapshots
    /// (containerd's walking differ before 2.2) takes "not supported" for a failure.
    Compared { snapshot: u64 },
}

impl LowerDirs {
    /// Returns the directory of a parent.
    pub(crate) fn dir(&self, parent: &Link) -> SnapshotDir {
        let layer = parent.id;
        match *self {
            Self::IdMapped { snapshot, .. } => SnapshotDir::IdMapped { layer, snapshot },
            Self::Compared { snapshot } if parent.lazy.is_some() => {
                SnapshotDir::Compared { layer, snapshot }
            }
            Self::Shared | Self::Compared { .. } => SnapshotDir::Snapshot(layer),
        }
    }

    /// Returns the mount of a parent, if it is lazy.
    pub(crate) fn mount(&self, parent: &Link) -> Option<LazyMount> {
        Some(LazyMount {
            dir: self.dir(parent),
            name: parent.name.clone(),
            parent: None,
            lazy: parent.lazy.clone()?,
            view: View {
                id_maps: match self {
                    Self::IdMapped { maps, .. } => Some(maps.clone()),
                    Self::Shared | Self::Compared { .. } => None,
                },
                answer_xattrs: matches!(self, Self::Compared { .. }),
            },
        })
    }

    /// Returns the mounts of the lazy ones among these parents.
    pub(crate) fn mounts(&self, parents: &[Link]) -> Vec<LazyMount> {
        let mounts = parents.iter().filter_map(|parent| self.mount(parent));
        mounts.collect()
    }
}

/// The mount of a lazy layer in one directory.
#[derive(Debug, Clone)]
pub(crate) struct LazyMount {
    pub(crate) dir: SnapshotDir,
    /// Name of the layer's snapshot.
    pub(crate) name: String,
    /// Name of the snapshot below, if that is known.
    pub(crate) parent: Option<String>,
    pub(crate) lazy: LazyRecord,
    pub(crate) view: View,
}

impl LazyMount {
    /// Creates the span of a mount outside of a Prepare of the layer: its fields are added to every
    /// event within.
    pub(crate) fn span(&self) -> tracing::Span {
        let label = |key| self.lazy.labels.get(key).map_or("", String::as_str);
        tracing::error_span!(
            "mount",
            namespace = self.lazy.namespace,
            image = label(labels::IMAGE_REF),
            layerDigest = label(labels::LAYER_DIGEST),
        )
    }

    /// Returns the request for this mount.
    pub(crate) fn request(&self, purpose: Purpose, directories: &Directories) -> LayerRequest {
        LayerRequest {
            purpose,
            namespace: self.lazy.namespace.clone(),
            mountpoint: directories.fs(self.dir),
            labels: self.lazy.labels.clone(),
            view: self.view.clone(),
            parent: self.parent.clone(),
            snapshot: directories.snapshot(self.dir.layer()),
            parents: Vec::new(),
        }
    }
}
