//! What can go wrong with the stores: which file, what happened, what to do.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use soci_oci::Digest;
use soci_ztoc::{SpanId, ZtocError};

use crate::Owner;

/// The error of a store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process uses the root folder.
    #[error("{} is in use by another daemon{}; stop that one, or use another root folder", .path.display(), by(*.owner))]
    Locked {
        /// The root folder.
        path: PathBuf,
        /// The processes that have it, as far as they said.
        owner: Option<Owner>,
    },
    /// A folder that we must write to cannot be written to.
    #[error("{} is not writable ({source}); check its owner, its mode and that the file system is not read-only", .path.display())]
    NotWritable {
        /// The folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The layer store is at its limit, and holds nothing that may go for the span. Readers are
    /// served all the same.
    #[error(
        "cannot keep a span in {}: the layer store is at its limit and holds nothing that may go, so \
         that the span is fetched again when it is read; raise layer_store.max_size_bytes or \
         max_size_percent to keep it", .path.display()
    )]
    OverLimit {
        /// The file.
        path: PathBuf,
    },
    /// The disk, a quota or the reserve is full.
    #[error("no space to {action} {}; free some space or lower what is kept", .path.display())]
    NoSpace {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The bytes do not have the digest.
    #[error("{what}: the content has digest {actual}, not {expected}")]
    DigestMismatch {
        /// Which object.
        what: String,
        /// What it should be.
        expected: Digest,
        /// What it is.
        actual: Digest,
    },
    /// More or fewer bytes than the descriptor says.
    #[error("{what}: the content has {actual} bytes, not {expected}")]
    SizeMismatch {
        /// Which object.
        what: String,
        /// The bytes that the descriptor names.
        expected: u64,
        /// The bytes that came; it may stop counting just above `expected`.
        actual: u64,
    },
    /// It is not in the store.
    #[error("{what} is not in {}", .path.display())]
    NotFound {
        /// What was looked up.
        what: String,
        /// The store.
        path: PathBuf,
    },
    /// A file of an OCI layout is not what the specification says.
    #[error("{}: {reason}", .path.display())]
    Layout {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The zTOC of a layer cannot be used.
    #[error("zTOC {digest}: {source}")]
    Ztoc {
        /// Its digest.
        digest: Digest,
        /// The cause.
        source: ZtocError,
    },
    /// A span that the layer does not have, or bytes of another length than it has.
    #[error("span {} of layer {layer}: {reason}", .span.0)]
    Span {
        /// The layer.
        layer: Digest,
        /// The span.
        span: SpanId,
        /// What is wrong.
        reason: &'static str,
    },
    /// A span that is too large to be handled in memory.
    #[error(
        "span {} of layer {layer} has {len} bytes, more than the {most} that are handled; index the image with a smaller span size",
        .span.0
    )]
    LargeSpan {
        /// The layer.
        layer: Digest,
        /// The span.
        span: SpanId,
        /// Its compressed or uncompressed length in bytes.
        len: u64,
        /// The most that is handled.
        most: u64,
    },
    /// Bytes past the end of the layer were requested.
    #[error("bytes {offset} to {offset}+{len} lie outside of layer {layer} of {size} bytes")]
    OutOfRange {
        /// The layer.
        layer: Digest,
        /// Where the range starts, in the uncompressed tar.
        offset: u64,
        /// The length of the range in bytes.
        len: u64,
        /// The length of the uncompressed tar in bytes.
        size: u64,
    },
    /// The artifact database failed.
    #[error("artifact database {}: {source}", .path.display())]
    ArtifactDb {
        /// The database file.
        path: PathBuf,
        /// Why it failed.
        source: Box<redb::Error>,
    },
    /// Another process uses the artifact database for too long.
    #[error(
        "the artifact database {} has been in use by another soci process for {} s; try again when that one is done",
        .path.display(), .waited.as_secs()
    )]
    ArtifactDbInUse {
        /// The database file.
        path: PathBuf,
        /// How long it was waited for.
        waited: Duration,
    },
    /// An entry of the artifact database cannot be read.
    #[error("artifact database {}: {reason}; `soci rebuild-db` rebuilds it from the content stores", .path.display())]
    ArtifactEntry {
        /// The database file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The artifact database of v0.15 cannot be taken over.
    #[error(
        "the artifact database {} of soci v0.15 cannot be taken over: {source}; \
         `soci rebuild-db` continues without it", .path.display()
    )]
    OldArtifacts {
        /// The file, which is left as it is.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<soci_bolt::BoltError>,
    },
}

fn by(owner: Option<Owner>) -> String {
    owner
        .map(|owner| owner.supervisor.unwrap_or(owner.server))
        .map(|pid| format!(" (process {pid})"))
        .unwrap_or_default()
}

impl StoreError {
    /// An error of the operating system; a full disk or quota gets its own variant.
    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>, source: io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::NoSpace { action, path }
            }
            _ => Self::Io {
                action,
                path,
                source,
            },
        }
    }

    /// Returns whether the object is not in the store, which is not a failure of the store.
    #[must_use]
    pub const fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}
