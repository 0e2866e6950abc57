//! What a mount needs of a zTOC: its entries, read from the blob when they are requested, and its spans.

use bytes::Bytes;

use crate::entry::{Entries, Entry};
use crate::flatbuffer_read::Table;
use crate::{FileMetadata, SpanTable, ZtocError};

/// The parts of a zTOC that a mount needs. It holds the blob and, where the entries are not stored in
/// the order of the tar, four bytes per entry.
#[derive(Debug, Clone)]
pub struct LayerIndex {
    blob: Bytes,
    order: Option<Vec<u32>>,
    len: u64,
    /// The spans.
    pub spans: SpanTable,
}

impl LayerIndex {
    /// `blob` has been checked, and has its entries in `order`.
    pub(crate) fn new(
        blob: Bytes,
        order: Option<Vec<u32>>,
        spans: SpanTable,
    ) -> Result<Self, ZtocError> {
        let len = Entries::of(Table::root(&blob)?)?.len() as u64;
        Ok(Self {
            blob,
            order,
            len,
            spans,
        })
    }

    /// The number of entries.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no entry.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The zTOC as it was read.
    #[must_use]
    pub const fn blob(&self) -> &Bytes {
        &self.blob
    }

    /// The entries in the order of the tar.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        let table = Table::root(&self.blob).and_then(Entries::of);
        // It was read before, so that there is no error.
        let entries = table.ok().into_iter();
        entries.flat_map(|entries| entries.iter(self.order.as_deref()))
    }

    /// The entries in the order of the tar, copied out of the blob.
    #[must_use]
    pub fn toc(&self) -> Vec<FileMetadata> {
        self.entries().map(|entry| entry.to_metadata()).collect()
    }
}
