//! What a job needs of the outside: an image's layers, and each of them in a folder.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use soci_layer::UnpackedSize;
use soci_unpack::{ImpliedDirectories, LayerProgress};
use tokio_util::sync::CancellationToken;

use crate::error::EagerError;
use crate::folder::Folder;
use crate::image::{ImageToPull, PlannedLayer};

/// Pulls images.
#[async_trait]
pub(crate) trait Puller: Send + Sync + 'static {
    /// Returns the layers of an image, lowest first.
    async fn describe(&self, image: &ImageToPull) -> Result<Vec<PlannedLayer>, EagerError>;

    /// Begins to pull layers of an image, with the limits that one image has.
    fn begin(&self, image: &ImageToPull) -> Arc<dyn ImagePull>;
}

/// An image that is being pulled.
#[async_trait]
pub(crate) trait ImagePull: Send + Sync + 'static {
    /// Pulls a layer into a folder of its own: verified, complete and on disk. Nothing of it is left,
    /// and nothing is written any more, after a failure.
    async fn pull(
        &self,
        layer: &PlannedLayer,
        progress: &Arc<LayerProgress>,
        cancel: &CancellationToken,
    ) -> Result<PulledLayer, EagerError>;
}

/// A layer in a folder of its own.
pub(crate) struct PulledLayer {
    /// The folder.
    pub(crate) folder: Folder,
    /// The directories whose attributes the layers below have.
    pub(crate) implied: ImpliedDirectories,
    /// How long it was unpacked, from its turn on.
    pub(crate) unpacked_for: Duration,
    /// What the folder takes on disk.
    pub(crate) size: UnpackedSize,
}
