//! Why an image cannot be pulled eagerly.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use soci_containerd::ContainerdError;
use soci_layer::{LayerRefusal, UnpackFault};
use soci_oci::Digest;
use soci_unpack::UnpackError;

/// Why an image, or one layer of it, cannot be pulled eagerly. Clones share the cause: all waiters of
/// an image get it.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum EagerError {
    /// Manifest or configuration of the image cannot be read.
    #[error("cannot read the layers of image manifest {manifest}")]
    Describe {
        /// The manifest.
        manifest: Digest,
        /// The cause.
        source: Arc<UnpackError>,
    },
    /// The labels of the Prepare do not fit the image that they name.
    #[error("the labels disagree with image manifest {manifest}: {reason}")]
    Labels {
        /// The manifest.
        manifest: Digest,
        /// What does not agree.
        reason: String,
    },
    /// A layer of the image cannot be pulled or unpacked.
    #[error("cannot pull layer {layer}")]
    Layer {
        /// The compressed layer.
        layer: Digest,
        /// The cause.
        source: Arc<UnpackError>,
    },
    /// containerd cannot keep the compressed layers.
    #[error(
        "cannot keep the compressed layers in containerd's content store \
         (discard_unpacked_layers = true does without)"
    )]
    Keep {
        /// The cause.
        source: Arc<ContainerdError>,
    },
    /// A folder cannot be made or moved.
    #[error("{}: cannot {action}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The action that failed.
        action: &'static str,
        /// The cause.
        source: Arc<io::Error>,
    },
    /// What the layer's directories are like in the layers below cannot be set.
    #[error("cannot set the attributes of directories that the layer implies")]
    Settle {
        /// The cause.
        source: Arc<soci_unpack::ApplyError>,
    },
    /// The work on the image was ended.
    #[error("the work on image manifest {manifest} was ended: {reason}")]
    Ended {
        /// The manifest.
        manifest: Digest,
        /// Why.
        reason: &'static str,
    },
    /// The client gave up.
    #[error("the pull was cancelled")]
    Cancelled,
    /// A task of ours panicked, or the runtime is ending.
    #[error("work on the image did not finish")]
    Interrupted,
}

impl EagerError {
    fn fault(&self) -> UnpackFault {
        match self {
            Self::Describe { source, .. } | Self::Layer { source, .. } => source.fault(),
            Self::Labels { .. } => UnpackFault::Image,
            Self::Settle { source } => source.fault(),
            Self::Folder { source, .. } => soci_unpack::fault_of(source),
            Self::Keep { .. } | Self::Ended { .. } | Self::Cancelled | Self::Interrupted => {
                UnpackFault::Passing
            }
        }
    }
}

impl From<EagerError> for LayerRefusal {
    fn from(error: EagerError) -> Self {
        Self::UnpackFailed {
            fault: error.fault(),
            source: Arc::new(error),
        }
    }
}

impl From<soci_task::Interrupted> for EagerError {
    fn from(_: soci_task::Interrupted) -> Self {
        Self::Interrupted
    }
}

/// Converts an I/O error to [`EagerError::Folder`].
pub(crate) fn folder(
    path: impl Into<PathBuf>,
    action: &'static str,
) -> impl FnOnce(io::Error) -> EagerError {
    let path = path.into();
    move |source| EagerError::Folder {
        path,
        action,
        source: Arc::new(source),
    }
}
