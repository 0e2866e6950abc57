//! Errors of the snapshot metadata.

use std::error::Error;
use std::path::PathBuf;

use crate::file_error::FileError;

/// A request that the metadata does not allow, or a failure of the database.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MetadataError {
    /// The snapshot does not exist.
    #[error("snapshot {name:?} does not exist")]
    NotFound {
        /// The requested name.
        name: String,
    },
    /// The parent of a new snapshot does not exist.
    #[error("parent snapshot {parent:?} does not exist")]
    ParentNotFound {
        /// The name of the parent.
        parent: String,
    },
    /// The name of a new snapshot is taken.
    #[error("snapshot {name:?} already exists")]
    AlreadyExists {
        /// The requested name.
        name: String,
    },
    /// A snapshot with children cannot be removed.
    #[error("cannot remove snapshot {name:?}: snapshot {child:?} is based on it")]
    HasChildren {
        /// The snapshot to remove.
        name: String,
        /// One of its children.
        child: String,
    },
    /// Only an active snapshot can be committed.
    #[error("snapshot {name:?} is not active")]
    NotActive {
        /// The snapshot to commit.
        name: String,
    },
    /// Only a committed snapshot can be a parent.
    #[error("parent snapshot {parent:?} is not committed")]
    ParentNotCommitted {
        /// The name of the parent.
        parent: String,
    },
    /// A snapshot has a parent since its Prepare, and its Commit names another one.
    #[error("snapshot {name:?} was prepared on {prepared:?} and cannot be committed on {named:?}")]
    ParentDiffers {
        /// The active snapshot.
        name: String,
        /// The parent of the Prepare.
        prepared: String,
        /// The parent of the Commit.
        named: String,
    },
    /// The field mask of an Update names a field that cannot change.
    #[error("cannot update the field {path:?} of snapshot {name:?}; only labels may change")]
    ImmutableField {
        /// The path in the mask.
        path: String,
        /// The snapshot to update.
        name: String,
    },
    /// The directories of a new snapshot cannot be made.
    #[error(transparent)]
    Directory(FileError),
    /// The database failed.
    #[error("snapshot metadata {}: {source}", path.display())]
    Database {
        /// The database file.
        path: PathBuf,
        /// The cause.
        source: Box<redb::Error>,
    },
    /// The database was written by another version of this program.
    #[error(
        "snapshot metadata {}: schema version {found}, this program reads {known}; \
         use the program that wrote it, or move the file away to start with an empty database",
        path.display()
    )]
    Schema {
        /// The database file.
        path: PathBuf,
        /// The version in the file.
        found: u64,
        /// The version of this program.
        known: u64,
    },
    /// An entry of the database is damaged.
    #[error("snapshot metadata: the entry of {name:?} is damaged")]
    Corrupt {
        /// The snapshot.
        name: String,
        /// What is wrong with its entry.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl MetadataError {
    /// Creates [`MetadataError::Corrupt`] from its cause: an error, or a text.
    pub(crate) fn corrupt(name: &str, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Corrupt {
            name: name.to_owned(),
            source: cause.into(),
        }
    }
}
