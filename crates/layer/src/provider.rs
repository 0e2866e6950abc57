//! The port between the snapshotter and the provider of lazy layers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use crate::refusal::{Cause, LayerRefusal};
use crate::request::{
    Announcement, ChainUse, Interest, LayerRequest, LayerUses, UnpackOutcome, UnpackRequest,
    UnpackedSize,
};
use crate::use_refusal::UseRefusal;

/// Serves the file systems of image layers.
///
/// The snapshotter never opens or stats anything below a mount point that it gave to a provider:
/// the daemon would wait for itself.
#[async_trait]
pub trait LayerProvider: Send + Sync + 'static {
    /// Mounts the layer that the labels describe at `request.mountpoint`, an existing, empty directory.
    ///
    /// # Errors
    /// The layer cannot be mounted. Nothing is mounted there then, and the directory is still empty.
    async fn mount(&self, request: LayerRequest) -> Result<MountedInfo, LayerRefusal>;

    /// Unmounts the layer at `mountpoint`, also when an earlier process mounted it and died.
    ///
    /// Succeeds if nothing is mounted there or the directory does not exist.
    ///
    /// # Errors
    /// The mount is busy or the kernel refuses. The layer is still served then.
    async fn unmount(&self, mountpoint: &Path) -> Result<(), ProviderError>;

    /// Checks that a layer is mounted at `mountpoint` and can be served, before a snapshot is stacked
    /// on it. Must be cheap: every start of a container waits for it.
    ///
    /// # Errors
    /// The layer is not mounted, or its connection has ended.
    async fn check(
        &self,
        mountpoint: &Path,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), ProviderError>;

    /// Returns the labels of a Prepare without those that the image set, as far as that is known.
    ///
    /// # Errors
    /// The labels name another image than the one that the client pulls.
    async fn vet_labels(
        &self,
        request: &LayerRequest,
    ) -> Result<BTreeMap<String, String>, LayerRefusal> {
        Ok(request.labels.clone())
    }

    /// Decides whether a client may use a snapshot on these layers, which are mounted.
    ///
    /// A lazy layer is verified as a whole only once all of it is stored. Until then it may be used
    /// for images whose own index names it; for others it is verified first.
    ///
    /// # Errors
    /// A layer is forged, or cannot be verified now.
    async fn admit(&self, use_of: ChainUse) -> Result<(), UseRefusal> {
        let _ = use_of;
        Ok(())
    }

    /// Restores a layer that an earlier process mounted, with the labels of the Prepare that made it.
    ///
    /// Called for each lazy snapshot when the snapshotter is opened. A mount whose connection is
    /// alive is adopted; a dead one is unmounted and the layer mounted again, which is the default
    /// implementation.
    ///
    /// # Errors
    /// The layer can neither be adopted nor mounted again.
    async fn restore(&self, request: LayerRequest) -> Result<Restored, LayerRefusal> {
        self.unmount(&request.mountpoint)
            .await
            .map_err(LayerRefusal::failed)?;
        Ok(Restored {
            root: self.mount(request).await?,
            how: Restoration::Remounted,
        })
    }

    /// Fetches a layer that cannot be mounted lazily and unpacks it into `request.layer.mountpoint`,
    /// an existing, empty directory, as containerd's overlayfs snapshotter would.
    ///
    /// After success the directory is complete, verified and durable; after a failure its content is
    /// undefined. `cancel` ends the work early. Nothing is written after this returns. The default
    /// implementation refuses.
    ///
    /// # Errors
    /// The layer cannot be fetched, verified or unpacked.
    async fn unpack(
        &self,
        request: UnpackRequest,
        cancel: CancellationToken,
    ) -> Result<UnpackOutcome, LayerRefusal> {
        let _ = (request, cancel);
        Err(LayerRefusal::unpack_failed(
            "this provider does not unpack layers",
        ))
    }

    /// Notes that the Prepare of an image layer has begun, before the layer is looked up and while
    /// another client may be preparing it.
    async fn announce(&self, announcement: Announcement) -> Option<Interest> {
        let _ = announcement;
        None
    }

    /// Notes what clients use now. Called at the start, and after changes that may have changed it.
    fn uses(&self, uses: &LayerUses) {
        let _ = uses;
    }

    /// Returns the disk space that is taken for the layer mounted at `mountpoint`. Of several mounts
    /// of the same data one has all of it. `None`: no layer is mounted there. Blocks on the disk.
    fn disk_usage(&self, mountpoint: &Path) -> Option<UnpackedSize> {
        let _ = mountpoint;
        None
    }

    /// Notes that the committed snapshot with these labels was removed.
    fn removed(&self, labels: &BTreeMap<String, String>) {
        let _ = labels;
    }
}

/// A layer of an earlier process that was restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// The attributes of its root directory.
    pub root: MountedInfo,
    /// How it was restored.
    pub how: Restoration,
}

/// How a layer of an earlier process was restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restoration {
    /// Its connection was adopted: readers noticed nothing but a delay.
    Adopted,
    /// Nothing was mounted: it was mounted again.
    Remounted,
    /// A mount with a dead connection was replaced. Containers that run on the old mount get errors
    /// until they are restarted.
    Severed,
}

/// The attributes of a mounted layer's root directory.
///
/// They are stored in the snapshot metadata, because a daemon that stats its own mount may wait for
/// itself.
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
    /// The attributes of a layer without an entry for its root.
    fn default() -> Self {
        Self {
            uid: 0,
            gid: 0,
            mode: 0o755,
        }
    }
}

/// A mounted layer cannot be served, or cannot be unmounted.
#[derive(Debug, Clone, thiserror::Error)]
#[error("layer at {}", mountpoint.display())]
pub struct ProviderError {
    /// The mount point in question.
    pub mountpoint: PathBuf,
    /// The cause.
    #[source]
    pub source: Cause,
}

impl ProviderError {
    /// Creates an error about a mount point from its cause: an error, or a text.
    pub fn new(
        mountpoint: impl Into<PathBuf>,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            mountpoint: mountpoint.into(),
            source: Cause::from(cause.into()),
        }
    }
}
