//! A lazy layer as the process sees it that reads into the page cache ahead of containers.

use std::sync::Arc;

use crate::{LayerData, LayerStatus, LazyLayer, ReadDone, ReadError, StillWanted};

/// A layer whose reads are in the logs of what a start reads, because the container finds the pages
/// and reads them no more. They begin no readahead, and use nothing that was fetched ahead.
pub(crate) struct PageCacheView(pub(crate) Arc<LazyLayer>);

impl LayerData for PageCacheView {
    fn try_read(&self, offset: u64, buf: &mut [u8]) -> Result<bool, ReadError> {
        self.0.read_ahead_of_container(offset, buf)
    }

    fn read(&self, offset: u64, len: usize, done: ReadDone) {
        self.0.read_or_fetch(offset, len, None, done);
    }

    fn read_while(&self, offset: u64, len: usize, wanted: StillWanted, done: ReadDone) {
        self.0.read_or_fetch(offset, len, Some(wanted), done);
    }

    fn status(&self) -> LayerStatus {
        self.0.status()
    }
}
