//! The interface to the file system: reading the uncompressed tar of a layer.

use bytes::Bytes;
use soci_oci::Digest;

use crate::{LayerFailure, ReadError};

/// State of a layer, as its state file shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerStatus {
    /// Digest of the compressed layer.
    pub digest: Digest,
    /// Compressed size in bytes.
    pub size: u64,
    /// Number of compressed bytes that have been fetched, verified and stored.
    pub fetched_size: u64,
    /// The last error, until a fetch succeeds.
    pub error: Option<LayerFailure>,
}

/// Whether the reader of a [`LayerData::read_while`] still waits.
pub type StillWanted = Box<dyn Fn() -> bool + Send + Sync>;

/// Receives the answer to a [`LayerData::read`].
pub type ReadDone = Box<dyn FnOnce(Result<Bytes, ReadError>) + Send>;

/// The uncompressed tar of a layer: stored spans immediately, missing ones on demand.
pub trait LayerData: Send + Sync + 'static {
    /// Fills `buf` from stored spans. Returns `false` if some are missing; the content of `buf` is
    /// then undefined. Never waits for the network.
    ///
    /// # Errors
    /// The range lies outside the layer, or the store failed.
    fn try_read(&self, offset: u64, buf: &mut [u8]) -> Result<bool, ReadError>;

    /// Reads a range and fetches what is missing. `done` is called exactly once, on any thread,
    /// possibly before this returns; also when the layer is closed or the fetch fails. `Ok` holds
    /// exactly `len` bytes.
    fn read(&self, offset: u64, len: usize, done: ReadDone);

    /// As [`LayerData::read`], for a reader that may go away: what is fetched for such readers only
    /// is given up once `wanted` returns `false`, which is asked from time to time.
    fn read_while(&self, offset: u64, len: usize, wanted: StillWanted, done: ReadDone) {
        let _ = wanted;
        self.read(offset, len, done);
    }

    /// Returns how much is stored, and the last error.
    fn status(&self) -> LayerStatus;
}
