//! Spans: the parts of a layer that can be fetched, checked and inflated alone.

use std::ops::Range;
use std::sync::Arc;

use oci::Digest;

use crate::{Compression, SpanError};

/// The number of a span in its layer, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpanId(pub u32);

/// Where a span lies and what its bytes must hash to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Its bytes in the layer blob, including the byte shared with its neighbour before where
    /// `bits` is not 0.
    pub compressed: Range<u64>,
    /// Its bytes in the uncompressed stream.
    pub uncompressed: Range<u64>,
    /// How many high bits of its first byte belong to it; 0: all of it.
    pub bits: u8,
    /// The sha256 of its compressed bytes.
    pub digest: Digest,
}

/// What is needed to fetch, check and inflate spans. Small, and cheap to clone: the windows stay in
/// the zTOC blob.
#[derive(Debug, Clone)]
pub struct SpanTable {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {}

impl SpanTable {
    /// How many spans there are.
    #[must_use]
    pub fn len(&self) -> u32 {
        let _ = &self.inner;
        todo!()
    }

    /// Is there no span? Never so for a zTOC that was parsed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A span.
    ///
    /// # Panics
    /// When `id` is not below [`SpanTable::len`]; [`SpanTable::get`] does not.
    #[must_use]
    pub fn span(&self, _id: SpanId) -> Span {
        todo!()
    }

    /// A span, if there is one of that number.
    #[must_use]
    pub fn get(&self, _id: SpanId) -> Option<Span> {
        todo!()
    }

    /// The length of the layer blob in bytes.
    #[must_use]
    pub fn compressed_size(&self) -> u64 {
        todo!()
    }

    /// The length of the tar in bytes, which is where the last span ends.
    #[must_use]
    pub fn uncompressed_size(&self) -> u64 {
        todo!()
    }

    /// How the layer is compressed.
    #[must_use]
    pub fn compression(&self) -> Compression {
        todo!()
    }

    /// The span that holds an uncompressed offset; `None` past the end.
    #[must_use]
    pub fn at_uncompressed(&self, _offset: u64) -> Option<SpanId> {
        todo!()
    }

    /// The numbers of all spans that hold a part of a range of the tar; empty for an empty range.
    #[must_use]
    pub fn covering(&self, _uncompressed: Range<u64>) -> Range<u32> {
        todo!()
    }

    /// Where the span's 32 KiB window lies in the zTOC blob. `None`: plain tar, or the implied first
    /// checkpoint of old zTOCs, whose window is all zero; `extract` takes an empty window then.
    #[must_use]
    pub fn window_at(&self, _id: SpanId) -> Option<Range<u64>> {
        todo!()
    }

    /// Checks a span's compressed bytes against its digest.
    ///
    /// # Errors
    /// [`SpanError::Length`] or [`SpanError::Digest`] when they are not the span's bytes.
    pub fn verify(&self, _id: SpanId, _compressed: &[u8]) -> Result<(), SpanError> {
        todo!()
    }

    /// Checks a span's compressed bytes, exactly `span.compressed`, then inflates them: afterwards
    /// `out` holds exactly `span.uncompressed`. On an error `out` is empty.
    ///
    /// # Errors
    /// [`SpanError`] when the bytes are not the span's or the zTOC is wrong about it.
    pub fn extract(
        &self,
        _id: SpanId,
        _compressed: &[u8],
        _window: &[u8],
        _out: &mut Vec<u8>,
    ) -> Result<(), SpanError> {
        todo!()
    }
}
