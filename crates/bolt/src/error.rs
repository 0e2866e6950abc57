//! Why a bbolt file cannot be read.

use std::io;
use std::path::PathBuf;

/// What is wrong with a bbolt file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BoltError {
    /// The operating system refused.
    #[error("cannot read {}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Another process has the file open for writing.
    #[error(
        "{} is in use by another process, probably soci-snapshotter v0.15; stop that one first",
        .path.display()
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file is larger than any that is read whole.
    #[error("{} has {size} bytes, more than the {limit} that are read", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The most that is read, in bytes.
        limit: u64,
    },
    /// Neither meta page is valid.
    #[error("not a bbolt database: {reason}")]
    NoDatabase {
        /// What was found where a meta page should be.
        reason: &'static str,
    },
    /// A page contradicts itself or the rest of the file.
    #[error("the bbolt database is damaged: page {page}: {reason}")]
    Damaged {
        /// The number of the page.
        page: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl BoltError {
    pub(crate) const fn damaged(page: u64, reason: &'static str) -> Self {
        Self::Damaged { page, reason }
    }
}
