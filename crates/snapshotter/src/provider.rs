//! The edge to whatever serves lazy layers: the snapshotter asks it to mount the file system of a
//! layer, and learns why when that is not possible.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use crate::id_maps::IdMaps;

/// Serves the file systems of layers. Implemented by the crate `lazy`, and by a double in tests.
///
/// The snapshotter never opens or stats anything below a mount point that it gave to a provider.
#[async_trait]
pub trait LayerProvider: Send + Sync + 'static {
    /// Mounts the layer that the labels describe at `request.mountpoint`, which exists and is
    /// empty. After a refusal nothing is mounted there and the directory is still empty.
    async fn mount(&self, request: LayerRequest) -> Result<MountedInfo, LayerRefusal>;

    /// Unmounts what is mounted there, also when an earlier process mounted it and died. Nothing
    /// mounted is success, and so is a mount point that does not exist.
    async fn unmount(&self, mountpoint: &Path) -> Result<(), ProviderError>;

    /// Whether a layer is mounted there and can still be served; called before a snapshot is put on
    /// top of it. Must be cheap: every start of a container waits for it.
    async fn check(
        &self,
        mountpoint: &Path,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), ProviderError>;

    /// Brings a layer back that an earlier process mounted: called for each lazy snapshot when the
    /// snapshotter is opened, with the labels of the Prepare that made it. A mount of that process may
    /// still be there: one whose connection lives is served on, a dead one is unmounted and the layer
    /// mounted anew, which is what happens by default.
    async fn restore(&self, request: LayerRequest) -> Result<Restored, LayerRefusal> {
        self.unmount(&request.mountpoint)
            .await
            .map_err(LayerRefusal::failed)?;
        Ok(Restored {
            root: self.mount(request).await?,
            how: Restoration::Anew,
        })
    }

    /// Fetches a layer that cannot be mounted lazily and unpacks it into `request.layer.mountpoint`,
    /// which exists and is empty, as containerd's overlayfs snapshotter would. What is there after
    /// success is complete, verified and on disk; after a refusal it is anything. `cancel` ends it
    /// early; once this returns, nothing is written any more. By default it is refused.
    async fn unpack(
        &self,
        request: UnpackRequest,
        cancel: CancellationToken,
    ) -> Result<(), LayerRefusal> {
        let _ = (request, cancel);
        Err(LayerRefusal::unpack_failed("layers are not unpacked here"))
    }
}

/// Which layer is to be unpacked where, and onto what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnpackRequest {
    /// The layer; its mount point is where it goes.
    pub layer: LayerRequest,
    /// The layers below, nearest first.
    pub parents: Vec<ParentLayer>,
}

/// A layer below one that is unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentLayer {
    /// Its `snapshots/<id>/fs`.
    pub directory: PathBuf,
    /// Whether the provider has mounted it there.
    pub lazy: bool,
}

/// A layer of an earlier process that was brought back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// Its root directory.
    pub root: MountedInfo,
    /// How.
    pub how: Restoration,
}

/// How a layer of an earlier process was brought back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restoration {
    /// Its connection is served on: whoever uses it noticed nothing but a delay.
    Continued,
    /// Nothing was mounted: it is mounted anew.
    Anew,
    /// A mount was there and its connection was dead: it is mounted anew, and containers that run on
    /// the old mount get errors until they are restarted.
    Severed,
}

/// Which layer is to be mounted where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerRequest {
    /// containerd's namespace of the client that asked.
    pub namespace: String,
    /// An existing, empty directory: `snapshots/<id>/fs`, or a directory beside it if it is mounted once
    /// more for one snapshot.
    pub mountpoint: PathBuf,
    /// The labels of the Prepare, also when the layer is restored.
    pub labels: BTreeMap<String, String>,
    /// Show owners as they are outside of a container's user namespace; also when it is restored.
    pub id_maps: Option<IdMaps>,
    /// Answer requests for extended attributes that a file does not have with ENODATA, also if the
    /// layer has none at all; also when it is restored.
    pub answer_xattrs: bool,
}

impl LayerRequest {
    /// Whether the layer is mounted already, and is to be shown otherwise here.
    #[must_use]
    pub fn is_apart(&self) -> bool {
        self.id_maps.is_some() || self.answer_xattrs
    }
}

/// The attributes of the mounted layer's root directory. They are kept in the snapshot metadata,
/// because a daemon that stats its own mount may wait for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MountedInfo {
    /// Owner of the root directory.
    pub uid: u32,
    /// Group of the root directory.
    pub gid: u32,
    /// Permission bits (07777) of the root directory.
    pub mode: u32,
}

impl Default for MountedInfo {
    /// What a layer without an entry for its root gets.
    fn default() -> Self {
        Self {
            uid: 0,
            gid: 0,
            mode: 0o755,
        }
    }
}

/// Why a layer is not mounted lazily. Each has a sentence for people and a stable [`code`] for
/// logs, metrics and `soci status`.
///
/// [`code`]: LayerRefusal::code
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayerRefusal {
    /// The image has no SOCI index (or none that can be read).
    #[error("the image has no usable SOCI index: {reason}")]
    NoIndex {
        /// Where it was looked for and what came back.
        reason: String,
    },
    /// The index has no zTOC for this layer.
    #[error("the SOCI index has no zTOC for this layer: {reason}")]
    NoZtoc {
        /// Which index, which layer.
        reason: String,
    },
    /// The layer is smaller than the configured `[snapshotter] min_layer_size`.
    #[error("the layer has {size} bytes, fewer than min_layer_size = {minimum}")]
    BelowMinSize {
        /// Compressed size in bytes, from the label.
        size: u64,
        /// The configured limit in bytes.
        minimum: u64,
    },
    /// The client did not send a label that is needed.
    #[error(
        "the label {label} is missing: the client must pass snapshot annotations \
         (CRI: disable_snapshot_annotations = false)"
    )]
    MissingLabel {
        /// The key of the label.
        label: String,
    },
    /// The client sent a label that cannot be read.
    #[error("the label {label} is malformed: {reason}")]
    InvalidLabel {
        /// The key of the label.
        label: String,
        /// What is wrong with its value.
        reason: String,
    },
    /// The layer cannot be fetched and unpacked either.
    #[error("unpacking the layer failed: {reason}")]
    UnpackFailed {
        /// What failed, with its causes.
        reason: String,
    },
    /// Something that should have worked did not: registry, disk, zTOC, mount.
    #[error("mounting the layer failed: {reason}")]
    Failed {
        /// What failed, with its causes.
        reason: String,
    },
}

impl LayerRefusal {
    /// [`LayerRefusal::NoIndex`] with the reason as text.
    pub fn no_index(reason: impl std::fmt::Display) -> Self {
        Self::NoIndex {
            reason: reason.to_string(),
        }
    }

    /// [`LayerRefusal::NoZtoc`] with the reason as text.
    pub fn no_ztoc(reason: impl std::fmt::Display) -> Self {
        Self::NoZtoc {
            reason: reason.to_string(),
        }
    }

    /// [`LayerRefusal::MissingLabel`] for the label with this key.
    pub fn missing_label(label: impl Into<String>) -> Self {
        Self::MissingLabel {
            label: label.into(),
        }
    }

    /// [`LayerRefusal::InvalidLabel`] for the label with this key, with the reason as text.
    pub fn invalid_label(label: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        Self::InvalidLabel {
            label: label.into(),
            reason: reason.to_string(),
        }
    }

    /// [`LayerRefusal::Failed`] with the reason as text.
    pub fn failed(reason: impl std::fmt::Display) -> Self {
        Self::Failed {
            reason: reason.to_string(),
        }
    }

    /// [`LayerRefusal::UnpackFailed`] with the reason as text.
    pub fn unpack_failed(reason: impl std::fmt::Display) -> Self {
        Self::UnpackFailed {
            reason: reason.to_string(),
        }
    }

    /// Whether the client unpacks such a layer at once, and not we.
    pub(crate) const fn leaves_to_client(&self) -> bool {
        matches!(self, Self::NoIndex { .. })
    }

    /// All codes, in the order of the variants.
    pub const CODES: [&'static str; 7] = [
        "no-index",
        "no-ztoc",
        "below-min-size",
        "missing-label",
        "invalid-label",
        "failed",
        "unpack-failed",
    ];

    /// A word that never changes, for logs, metrics and status output.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoIndex { .. } => "no-index",
            Self::NoZtoc { .. } => "no-ztoc",
            Self::BelowMinSize { .. } => "below-min-size",
            Self::MissingLabel { .. } => "missing-label",
            Self::InvalidLabel { .. } => "invalid-label",
            Self::UnpackFailed { .. } => "unpack-failed",
            Self::Failed { .. } => "failed",
        }
    }
}

/// A mounted layer cannot be served, or not be unmounted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("layer at {}: {reason}", mountpoint.display())]
pub struct ProviderError {
    /// The mount point in question.
    pub mountpoint: PathBuf,
    /// What is wrong, with its causes.
    pub reason: String,
}

impl ProviderError {
    /// An error about this mount point with the reason as text.
    pub fn new(mountpoint: impl Into<PathBuf>, reason: impl std::fmt::Display) -> Self {
        Self {
            mountpoint: mountpoint.into(),
            reason: reason.to_string(),
        }
    }
}
