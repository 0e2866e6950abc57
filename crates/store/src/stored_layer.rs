//! One layer in the store.

use std::ops::Range;

use oci::Digest;
use ztoc::{SpanId, SpanTable, Ztoc};

use crate::StoreError;

/// What a read found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum ReadOutcome {
    /// The whole buffer is filled.
    Filled,
    /// These spans are needed and not here; the buffer's content is undefined.
    Missing(Range<u32>),
}

/// One layer in the store. It keeps three descriptors open.
#[derive(Debug)]
pub struct StoredLayer {}

impl StoredLayer {
    /// The digest of the compressed layer.
    #[must_use]
    pub fn digest(&self) -> Digest {
        todo!()
    }
    /// The digest of its zTOC.
    #[must_use]
    pub fn ztoc_digest(&self) -> Digest {
        todo!()
    }
    /// Its spans.
    #[must_use]
    pub fn spans(&self) -> &SpanTable {
        todo!()
    }
    /// Parses the zTOC from disk.
    ///
    /// # Errors
    /// It cannot be read or is not what it was.
    pub fn ztoc(&self) -> Result<Ztoc, StoreError> {
        todo!()
    }
    /// Is the span here?
    #[must_use]
    pub fn has(&self, _id: SpanId) -> bool {
        todo!()
    }
    /// The runs of spans that are not here, ascending.
    #[must_use]
    pub fn missing(&self) -> Vec<Range<u32>> {
        todo!()
    }
    /// Are all spans here?
    #[must_use]
    pub fn is_complete(&self) -> bool {
        todo!()
    }
    /// The window that inflating the span needs; empty where none is needed.
    ///
    /// # Errors
    /// It cannot be read or is not what it was.
    pub fn window(&self, _id: SpanId) -> Result<Vec<u8>, StoreError> {
        todo!()
    }
    /// Stores a span's uncompressed bytes. It is readable at once, and durable after [`StoredLayer::sync`] or a
    /// moment later.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`], or the file system refused; then the span is not here.
    pub fn write_span(&self, _id: SpanId, _data: &[u8]) -> Result<(), StoreError> {
        todo!()
    }
    /// Reads uncompressed bytes if all of them are here.
    ///
    /// # Errors
    /// The range is outside of the layer, or the file system refused.
    pub fn read_at(&self, _offset: u64, _buf: &mut [u8]) -> Result<ReadOutcome, StoreError> {
        todo!()
    }
    /// The length of the compressed layer in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        todo!()
    }
    /// How many of them the spans that are here stand for.
    #[must_use]
    pub fn fetched_bytes(&self) -> u64 {
        todo!()
    }
    /// Makes durable what has been written.
    ///
    /// # Errors
    /// The file system refused; what was not durable will be checked again at its next use.
    pub fn sync(&self) -> Result<(), StoreError> {
        todo!()
    }
}
