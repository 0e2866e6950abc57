//! The edge to the file system: reading the uncompressed tar of a layer.

use bytes::Bytes;
use soci_oci::Digest;

/// Why a read failed. Cheap to clone: one failed fetch answers many readers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The range lies outside of the layer: the file tree and the layer do not fit together.
    #[error(
        "bytes {offset} to {offset}+{len} lie outside of the layer's {size} uncompressed bytes"
    )]
    OutOfRange {
        /// Where the range starts.
        offset: u64,
        /// The length of the range in bytes.
        len: u64,
        /// The length of the uncompressed tar in bytes.
        size: u64,
    },
    /// The layer was closed.
    #[error("the layer was closed while it was read")]
    Closed,
    /// The registry did not give the bytes.
    #[error("span {span} of {what} cannot be fetched: {reason}")]
    Source {
        /// The blob, without secrets.
        what: String,
        /// The span's number.
        span: u32,
        /// The registry client's error.
        reason: String,
    },
    /// The registry's bytes are not those that were indexed, or the zTOC is wrong about them.
    #[error("span {span} of {what} is damaged: {reason}")]
    Verification {
        /// The blob, without secrets.
        what: String,
        /// The span's number.
        span: u32,
        /// What does not match.
        reason: String,
    },
    /// The layer store failed.
    #[error("{0}")]
    Store(String),
    /// A defect of ours: a task ended without an answer.
    #[error(
        "the fetch ended without an answer; this is a defect of the snapshotter, please report it"
    )]
    Abandoned,
}

/// What the state file of a layer shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerStatus {
    /// The digest of the compressed layer.
    pub digest: Digest,
    /// The compressed size in bytes.
    pub size: u64,
    /// How many compressed bytes have been fetched, verified and stored.
    pub fetched_size: u64,
    /// What went wrong last, until something succeeds.
    pub error: Option<String>,
}

/// Takes the answer to a [`LayerData::read`].
pub type ReadDone = Box<dyn FnOnce(Result<Bytes, ReadError>) + Send>;

/// The uncompressed tar of a layer, as much of it as is here, and the rest on demand.
pub trait LayerData: Send + Sync + 'static {
    /// Fills `buf` from the uncompressed tar if it is all here now; `Ok(false)`: it is not, and the
    /// content of `buf` is undefined. Never waits for the network.
    ///
    /// # Errors
    /// The range is outside of the layer, or the store failed.
    fn try_read(&self, offset: u64, buf: &mut [u8]) -> Result<bool, ReadError>;

    /// Reads even if it must be fetched. `done` is called exactly once, on any thread, perhaps before
    /// this returns; also when the layer is closed or the fetch fails. `Ok` holds exactly `len` bytes.
    fn read(&self, offset: u64, len: usize, done: ReadDone);

    /// How much is here, and what went wrong.
    fn status(&self) -> LayerStatus;
}
