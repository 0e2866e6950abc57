//! A layer that fetches what is read of it.

use std::sync::Arc;

use store::StoredLayer;

use crate::{LayerData, LayerStatus, ReadDone, ReadError};

/// A layer that fetches what is read of it. Dropping it closes it.
pub struct LazyLayer {}

impl LazyLayer {
    /// Lets the background fetcher fill the layer once nobody has read for a while.
    pub fn start_background(&self) {
        todo!()
    }
    /// Fetches these spans at the priority of a recorded start-up profile.
    pub fn prefetch(&self, _spans: std::ops::Range<u32>) {
        todo!()
    }
    /// Answers all who wait with [`ReadError::Closed`] and stops all work for the layer.
    pub fn close(&self) {
        todo!()
    }
    /// What is stored of it.
    #[must_use]
    pub fn stored(&self) -> &Arc<StoredLayer> {
        todo!()
    }
}

impl LayerData for LazyLayer {
    fn try_read(&self, _offset: u64, _buf: &mut [u8]) -> Result<bool, ReadError> {
        todo!()
    }
    fn read(&self, _offset: u64, _len: usize, _done: ReadDone) {
        todo!()
    }
    fn status(&self) -> LayerStatus {
        todo!()
    }
}
