//! Errors of the snapshotter, and their mapping to gRPC status codes: the codes that containerd's
//! own snapshotters return in the same case.

use std::io;
use std::path::PathBuf;

use tonic::{Code, Status};

use crate::file_error::FileError;
use crate::filter::FilterError;
use crate::labels::InvalidLabel;
use crate::metadata::MetadataError;
use crate::v015::OldMetadataError;
use soci_layer::{LayerRefusal, ProviderError, UnpackFault, UseRefusal};

/// The failure of a call to the snapshotter, or of opening it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotterError {
    /// The metadata does not allow the call, or cannot be read or written.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// The target of a Prepare is committed: the client need not unpack it.
    #[error("target snapshot {target:?} already exists")]
    TargetExists {
        /// Value of the label `containerd.io/snapshot.ref`.
        target: String,
    },
    /// A committed snapshot has no mounts of its own.
    #[error("snapshot {name:?} is neither active nor a view; prepare or view it")]
    NotMountable {
        /// The snapshot.
        name: String,
    },
    /// The name of a new snapshot is not valid.
    #[error("invalid snapshot name: {reason}")]
    InvalidName {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A label is not valid.
    #[error(transparent)]
    Label(#[from] InvalidLabel),
    /// A request lacks a required message.
    #[error("the request has no {field}")]
    MissingField {
        /// The field.
        field: &'static str,
    },
    /// A filter of List cannot be parsed.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// A Prepare with a target came without the header `containerd-namespace`.
    #[error("a namespace is required: the header containerd-namespace is missing or not UTF-8")]
    NamespaceMissing,
    /// A lazy layer below the snapshot cannot be served.
    #[error("layer of snapshot {name:?} is unavailable")]
    LayerUnavailable {
        /// The committed lazy snapshot.
        name: String,
        /// The cause.
        source: ProviderError,
    },
    /// A lazy layer below the snapshot must not be used.
    #[error(transparent)]
    UseRefused(#[from] UseRefusal),
    /// The owners of a snapshot were translated already by the client.
    #[error(
        "snapshot {parent:?} has owners that containerd translated, so that its ids must not be \
         translated again: add the line `capabilities = [\"remap-ids\", \"multi-remap-ids\"]` to \
         [proxy_plugins.soci] of containerd's configuration, restart containerd, and remove this \
         snapshot"
    )]
    RemappedTwice {
        /// The committed snapshot that the client made.
        parent: String,
    },
    /// A client would copy a lazy image to translate its owners.
    #[error(
        "cannot have the lazy image {parent:?} copied with the owners of a user namespace, which would \
         download all of it: add the line `capabilities = [\"remap-ids\", \"multi-remap-ids\"]` to \
         [proxy_plugins.soci] of containerd's configuration and restart containerd; for ctr run, use \
         --remap-labels as well"
    )]
    ClientCopy {
        /// The committed snapshot that the client would copy.
        parent: String,
    },
    /// The snapshotter is being closed.
    #[error("the snapshotter is shutting down")]
    Closed,
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The backing file system cannot carry overlay mounts.
    #[error(
        "{} is on a file system without d_type support, which overlayfs needs \
         (XFS: format with ftype=1)", path.display()
    )]
    NoDirectoryTypes {
        /// The root directory of the snapshotter.
        path: PathBuf,
    },
    /// The path of the root directory cannot be written into mount options.
    #[error(
        "{} cannot hold snapshots: the path must be absolute, UTF-8, and free of commas, \
         colons and backslashes", path.display()
    )]
    UnusableRoot {
        /// The root directory of the snapshotter.
        path: PathBuf,
    },
    /// The metadata of soci-snapshotter v0.15 cannot be imported.
    #[error(
        "the snapshot metadata {} of soci-snapshotter v0.15 cannot be taken over: {source}; it is left as \
         it is: go back to v0.15, or move the directory away to start with an empty one", path.display()
    )]
    OldMetadata {
        /// The database file.
        path: PathBuf,
        /// The cause.
        source: Box<OldMetadataError>,
    },
    /// A lazy snapshot cannot be mounted again at the start.
    #[error(
        "cannot mount the lazy snapshot {name:?} again (to start without it, set \
         [holder] require_all_mounts = false)"
    )]
    Restore {
        /// The committed snapshot.
        name: String,
        /// The cause.
        source: LayerRefusal,
    },
    /// A provider that refused a layer left something mounted, which cannot be unmounted.
    #[error("{} is still mounted", mountpoint.display())]
    StillMounted {
        /// The mount point.
        mountpoint: PathBuf,
    },
    /// A layer that is pulled with all layers of its image cannot be unpacked.
    #[error("cannot pull and unpack the layer")]
    NotUnpacked {
        /// The cause.
        source: LayerRefusal,
    },
    /// The client cancelled the call.
    #[error("the client cancelled the call")]
    Cancelled,
    /// Blocking work panicked, or the runtime shut down.
    #[error(transparent)]
    Blocking(#[from] soci_task::Interrupted),
    /// A task of the snapshotter panicked, or the runtime shut down.
    #[error("an internal task failed")]
    Task(#[from] tokio::task::JoinError),
}

impl SnapshotterError {
    /// Whether another process, v0.15, uses the metadata.
    pub(crate) fn is_in_use(&self) -> bool {
        let Self::OldMetadata { source, .. } = self else {
            return false;
        };
        matches!(
            **source,
            OldMetadataError::Database(soci_bolt::BoltError::InUse { .. })
        )
    }

    /// Returns the gRPC code that containerd's own snapshotters return.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Metadata(error) => metadata_code(error),
            Self::TargetExists { .. } => Code::AlreadyExists,
            Self::NotMountable { .. }
            | Self::NamespaceMissing
            | Self::RemappedTwice { .. }
            | Self::ClientCopy { .. } => Code::FailedPrecondition,
            Self::InvalidName { .. }
            | Self::Label(_)
            | Self::MissingField { .. }
            | Self::Filter(_) => Code::InvalidArgument,
            Self::UseRefused(UseRefusal::Forged { .. }) => Code::FailedPrecondition,
            Self::UseRefused(UseRefusal::Unverified { .. })
            | Self::LayerUnavailable { .. }
            | Self::Closed => Code::Unavailable,
            Self::NotUnpacked { source } => not_unpacked_code(source),
            Self::Cancelled => Code::Cancelled,
            Self::File(error) => file_code(error),
            Self::NoDirectoryTypes { .. }
            | Self::UnusableRoot { .. }
            | Self::OldMetadata { .. }
            | Self::Restore { .. }
            | Self::StillMounted { .. }
            | Self::Blocking(_)
            | Self::Task(_) => Code::Internal,
        }
    }
}

fn metadata_code(error: &MetadataError) -> Code {
    match error {
        MetadataError::NotFound { .. } | MetadataError::ParentNotFound { .. } => Code::NotFound,
        MetadataError::AlreadyExists { .. } => Code::AlreadyExists,
        MetadataError::HasChildren { .. } | MetadataError::NotActive { .. } => {
            Code::FailedPrecondition
        }
        MetadataError::ParentNotCommitted { .. }
        | MetadataError::ParentDiffers { .. }
        | MetadataError::ImmutableField { .. } => Code::InvalidArgument,
        MetadataError::Directory(error) => file_code(error),
        MetadataError::Database { .. }
        | MetadataError::Schema { .. }
        | MetadataError::Corrupt { .. } => Code::Internal,
    }
}

/// An image that can never be unpacked is not a passing failure: clients retry those.
fn not_unpacked_code(refusal: &LayerRefusal) -> Code {
    match refusal {
        LayerRefusal::MissingLabel { .. } | LayerRefusal::InvalidLabel { .. } => {
            Code::InvalidArgument
        }
        LayerRefusal::UnpackFailed {
            fault: UnpackFault::Image,
            ..
        } => Code::FailedPrecondition,
        LayerRefusal::UnpackFailed {
            fault: UnpackFault::Space,
            ..
        } => Code::ResourceExhausted,
        _ => Code::Unavailable,
    }
}

fn file_code(error: &FileError) -> Code {
    match error.source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Code::ResourceExhausted,
        _ => Code::Internal,
    }
}

impl From<SnapshotterError> for Status {
    fn from(error: SnapshotterError) -> Self {
        let message = soci_errors::chain(&error);
        Self::new(error.code(), shortened(message))
    }
}

/// Maximum length of a message in bytes. Longer ones lose their middle, which holds a long name.
///
/// The message is sent in an HTTP/2 header, percent-encoded (up to three bytes for one), and clients
/// refuse more than 16 KiB of headers.
const MAX_MESSAGE: usize = 4096;

fn shortened(message: String) -> String {
    if message.len() <= MAX_MESSAGE {
        return message;
    }
    let half = MAX_MESSAGE / 2;
    // The next character begins at most three bytes later.
    let start = (half..).find_map(|at| message.get(..at));
    let end = (message.len() - half..).find_map(|at| message.get(at..));
    format!(
        "{} … {}",
        start.unwrap_or_default(),
        end.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_with_a_huge_name_keeps_both_ends_and_fits_into_a_header() {
        for name in ["x".repeat(40 << 10), "ü🦀".repeat(10 << 10)] {
            let status = Status::from(SnapshotterError::from(MetadataError::NotFound { name }));
            let message = status.message();
            assert!(message.starts_with("snapshot \""), "{message:.40}");
            assert!(message.ends_with("\" does not exist"));
            assert!(message.len() < MAX_MESSAGE + 20, "{}", message.len());
        }
    }

    #[test]
    fn the_code_of_an_eager_failure_says_whether_another_try_helps() {
        let failed = |fault| LayerRefusal::UnpackFailed {
            source: std::sync::Arc::new(io::Error::other("cause")),
            fault,
        };
        let cases = [
            (failed(UnpackFault::Image), Code::FailedPrecondition),
            (failed(UnpackFault::Space), Code::ResourceExhausted),
            (failed(UnpackFault::Passing), Code::Unavailable),
            (LayerRefusal::missing_label("label"), Code::InvalidArgument),
            (
                LayerRefusal::invalid_label("label", "no"),
                Code::InvalidArgument,
            ),
            (LayerRefusal::failed("cause"), Code::Unavailable),
        ];
        for (source, code) in cases {
            assert_eq!(SnapshotterError::NotUnpacked { source }.code(), code);
        }
    }
}
