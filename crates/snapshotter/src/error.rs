//! Everything that can go wrong in the snapshotter, and the one place where that becomes a gRPC
//! status: the code that containerd's own snapshotters answer in the same case.

use std::io;
use std::path::{Path, PathBuf};

use tonic::{Code, Status};

use crate::filter::FilterError;
use crate::takeover::OldMetadataError;
use soci_layer::ProviderError;

/// Why a call to the snapshotter, or opening it, failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotterError {
    /// No snapshot has this name.
    #[error("snapshot {name:?} does not exist")]
    NotFound {
        /// The name asked for.
        name: String,
    },
    /// The parent to be has no snapshot.
    #[error("parent snapshot {parent:?} does not exist")]
    ParentNotFound {
        /// The name of the parent.
        parent: String,
    },
    /// A snapshot has this name already.
    #[error("snapshot {name:?} already exists")]
    AlreadyExists {
        /// The name asked for.
        name: String,
    },
    /// The target of a Prepare is committed: the client need not unpack it.
    #[error("target snapshot {target:?} already exists")]
    TargetExists {
        /// Value of the label `containerd.io/snapshot.ref`.
        target: String,
    },
    /// Snapshots are based on it.
    #[error("cannot remove snapshot {name:?}: snapshot {child:?} is based on it")]
    HasChildren {
        /// The snapshot to be removed.
        name: String,
        /// One of its children.
        child: String,
    },
    /// Only an active snapshot can be committed.
    #[error("snapshot {name:?} is not active")]
    NotActive {
        /// The snapshot to be committed.
        name: String,
    },
    /// A committed snapshot has no mounts of its own.
    #[error("snapshot {name:?} is neither active nor a view; prepare or view it")]
    NotMountable {
        /// The snapshot whose mounts were asked for.
        name: String,
    },
    /// Only a committed snapshot can be a parent.
    #[error("parent snapshot {parent:?} is not committed")]
    ParentNotCommitted {
        /// The name of the parent.
        parent: String,
    },
    /// Not a name for a snapshot.
    #[error("a snapshot cannot be named so: {reason}")]
    InvalidName {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// More bytes than a label may have.
    #[error("label {key:?}: key and value have {length} bytes, more than {limit}")]
    LabelTooLong {
        /// The (start of the) key.
        key: String,
        /// Bytes of key and value.
        length: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// A label with an id map cannot be read.
    #[error("the label {label} is malformed: {reason}")]
    InvalidIdMap {
        /// The key of the label.
        label: &'static str,
        /// What is wrong with its value.
        reason: String,
    },
    /// A field mask of Update names a field that cannot change.
    #[error("cannot update the field {path:?} of snapshot {name:?}; only labels may change")]
    ImmutableField {
        /// The path in the mask.
        path: String,
        /// The snapshot to be updated.
        name: String,
    },
    /// A request lacks a message that is not optional.
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
        /// Why.
        #[source]
        source: ProviderError,
    },
    /// The snapshotter is being closed.
    #[error("the snapshotter is shutting down")]
    Closed,
    /// A file operation failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
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
    /// The metadata database failed.
    #[error("snapshot metadata {}: {source}", path.display())]
    Database {
        /// The database file.
        path: PathBuf,
        /// Why it failed.
        source: Box<redb::Error>,
    },
    /// The database was written by another version.
    #[error(
        "snapshot metadata {}: schema version {found}, this program reads {known}; \
         use the program that wrote it, or move the file away to start afresh", path.display()
    )]
    Schema {
        /// The database file.
        path: PathBuf,
        /// The version in it.
        found: u64,
        /// The version of this program.
        known: u64,
    },
    /// An entry of the database cannot be read.
    #[error("snapshot metadata: the entry of {name:?} is damaged: {reason}")]
    Corrupt {
        /// The snapshot.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// The metadata of soci-snapshotter v0.15 cannot be taken over.
    #[error(
        "the snapshot metadata {} of soci-snapshotter v0.15 cannot be taken over: {source}; it is left as \
         it is: go back to v0.15, or move the folder away to start afresh", path.display()
    )]
    OldMetadata {
        /// The database file.
        path: PathBuf,
        /// What is wrong.
        source: Box<OldMetadataError>,
    },
    /// A lazy snapshot could not be mounted again at the start.
    #[error(
        "cannot mount the lazy snapshot {name:?} again: {reason}; \
         to start without it set [snapshotter] allow_invalid_mounts_on_restart = true"
    )]
    Restore {
        /// The committed snapshot.
        name: String,
        /// Why.
        reason: String,
    },
    /// A task of ours panicked or was cancelled.
    #[error("an internal task failed: {reason}")]
    Task {
        /// What is known of it.
        reason: String,
    },
}

impl SnapshotterError {
    pub(crate) fn task(error: tokio::task::JoinError) -> Self {
        Self::Task {
            reason: error.to_string(),
        }
    }

    /// Names the file operation that failed.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

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

    /// The gRPC code that containerd's own snapshotters give.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::NotFound { .. } | Self::ParentNotFound { .. } => Code::NotFound,
            Self::AlreadyExists { .. } | Self::TargetExists { .. } => Code::AlreadyExists,
            Self::HasChildren { .. }
            | Self::NotActive { .. }
            | Self::NotMountable { .. }
            | Self::NamespaceMissing => Code::FailedPrecondition,
            Self::ParentNotCommitted { .. }
            | Self::InvalidName { .. }
            | Self::LabelTooLong { .. }
            | Self::InvalidIdMap { .. }
            | Self::ImmutableField { .. }
            | Self::MissingField { .. }
            | Self::Filter(_) => Code::InvalidArgument,
            Self::LayerUnavailable { .. } | Self::Closed => Code::Unavailable,
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    Code::ResourceExhausted
                }
                _ => Code::Internal,
            },
            Self::NoDirectoryTypes { .. }
            | Self::UnusableRoot { .. }
            | Self::Database { .. }
            | Self::Schema { .. }
            | Self::Corrupt { .. }
            | Self::OldMetadata { .. }
            | Self::Restore { .. }
            | Self::Task { .. } => Code::Internal,
        }
    }
}

impl From<SnapshotterError> for Status {
    fn from(error: SnapshotterError) -> Self {
        let message = soci_errors::chain(&error);
        Self::new(error.code(), shortened(message))
    }
}

/// Longer messages are cut in the middle: what went wrong stands at both ends, a long name between.
/// The message travels in an HTTP/2 header, percent-encoded (up to three bytes for one), and clients
/// refuse more than 16 KiB of headers.
const MAX_MESSAGE: usize = 4096;

fn shortened(message: String) -> String {
    if message.len() <= MAX_MESSAGE {
        return message;
    }
    let half = MAX_MESSAGE / 2;
    // At most three bytes further on begins a character.
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
            let status = Status::from(SnapshotterError::NotFound { name });
            let message = status.message();
            assert!(message.starts_with("snapshot \""), "{message:.40}");
            assert!(message.ends_with("\" does not exist"));
            assert!(message.len() < MAX_MESSAGE + 20, "{}", message.len());
        }
    }
}
