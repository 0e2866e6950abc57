//! The requests to a provider.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;

use crate::id_maps::IdMaps;

/// A layer to mount, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerRequest {
    /// Why the layer is mounted.
    pub purpose: Purpose,
    /// containerd's namespace of the client.
    pub namespace: String,
    /// An existing, empty directory: `snapshots/<id>/fs`, or one beside it for a second view.
    pub mountpoint: PathBuf,
    /// The labels of the Prepare that made the layer.
    pub labels: BTreeMap<String, String>,
    /// How the mount shows the layer.
    pub view: View,
    /// Name of the snapshot below, if that is known.
    pub parent: Option<String>,
    /// The directory of the layer's snapshot, `snapshots/<id>`, also for a second view. The provider
    /// may keep files of its own there, which are removed with the snapshot.
    pub snapshot: PathBuf,
    /// The layers below, nearest first. Only a [`Purpose::ImageLayer`] has them.
    pub parents: Vec<ParentLayer>,
}

/// Why a layer is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A client prepares an image layer: the layers above it are requested next.
    ImageLayer,
    /// A layer that is mounted already is mounted again for one snapshot, with another [`View`].
    SecondView,
    /// An earlier process had mounted the layer.
    Restore,
}

/// How a mount shows a layer. The default is the layer as its image describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// Maps owners to ids outside of the container's user namespace.
    pub id_maps: Option<IdMaps>,
    /// Answers requests for extended attributes that a file does not have with ENODATA even if the
    /// layer has none at all, where ENOSYS would be cheaper.
    pub answer_xattrs: bool,
}

/// A layer to unpack.
#[derive(Debug, Clone)]
pub struct UnpackRequest {
    /// The layer. It is unpacked into its mount point.
    pub layer: LayerRequest,
    /// The provider refused the layer with [`LayerRefusal::Eager`](crate::LayerRefusal::Eager): the
    /// layers above are unpacked as well, but for those that are committed.
    pub eager: Option<Arc<dyn CommittedLayers>>,
}

/// The layers that clients need not prepare.
pub trait CommittedLayers: Debug + Send + Sync {
    /// Whether a layer is committed under this target, the value of `containerd.io/snapshot.ref`.
    /// Blocks on the disk.
    fn contains(&self, target: &str) -> bool;
}

/// A Prepare of an image layer that has begun.
#[derive(Debug, Clone)]
pub struct Announcement {
    /// containerd's namespace of the client.
    pub namespace: String,
    /// The labels of the Prepare.
    pub labels: BTreeMap<String, String>,
    /// The layers that exist.
    pub committed: Arc<dyn CommittedLayers>,
}

/// A client's interest in an image that is pulled. It ends when this is dropped.
pub type Interest = Box<dyn std::any::Any + Send>;

/// What clients use of the layers that exist, and what the others take.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LayerUses {
    /// Mount points of the lazy layers that active snapshots and views stand on.
    pub in_use: HashSet<PathBuf>,
    /// Allocated bytes of all committed snapshots that are not lazy.
    pub unpacked_bytes: u64,
}

/// Disk space of a directory that a layer was unpacked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnpackedSize {
    /// Number of inodes.
    pub inodes: u64,
    /// Allocated bytes.
    pub bytes: u64,
}

/// A layer that was unpacked.
#[derive(Debug, Default)]
pub struct UnpackOutcome {
    /// What its directory takes, if that is known.
    pub size: Option<UnpackedSize>,
    /// The interest in its image, until the layer is committed.
    pub interest: Option<Interest>,
}

/// A layer below one that is mounted or unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentLayer {
    /// Its `snapshots/<id>/fs`.
    pub directory: PathBuf,
    /// Whether the provider has mounted it there.
    pub lazy: bool,
}

/// A snapshot that a client is about to use: a container's, not an image layer's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainUse {
    /// containerd's namespace of the client, if it sent one.
    pub namespace: Option<String>,
    /// The layers that the snapshot is stacked on, nearest first.
    pub layers: Vec<UsedLayer>,
    /// The snapshot exists: this use was admitted once.
    pub admitted_before: bool,
}

/// A layer below a snapshot that is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsedLayer {
    /// Name of its snapshot, which contains its chain ID.
    pub name: String,
    /// Where it is mounted, if it is lazy.
    pub mountpoint: Option<PathBuf>,
}
