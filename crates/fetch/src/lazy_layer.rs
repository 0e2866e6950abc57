//! A layer that fetches what is read of it.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use soci_store::{ReadOutcome, StoreError, StoredLayer};

use crate::core::Core;
use crate::layer::Layer;
use crate::priority::Priority;
use crate::{BackgroundCounts, LayerData, LayerStatus, ReadDone, ReadError};

/// A layer that fetches what is read of it. Dropping it closes it.
pub struct LazyLayer {
    core: Arc<Core>,
    layer: Arc<Layer>,
}

impl std::fmt::Debug for LazyLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LazyLayer")
            .field("status", &self.status())
            .finish()
    }
}

impl LazyLayer {
    pub(crate) const fn new(core: Arc<Core>, layer: Arc<Layer>) -> Self {
        Self { core, layer }
    }

    /// Lets the background fetcher fill the layer once nobody has read for a while.
    pub fn start_background(&self) {
        self.core.active();
        self.core.background.add(self.layer.clone());
    }

    /// Fetches these spans at the priority of a recorded start-up profile.
    pub fn prefetch(&self, spans: Range<u32>) {
        let spans = spans.start..spans.end.min(self.layer.spans.len());
        self.core.want_all(&self.layer, spans, Priority::Profile);
    }

    /// Answers all who wait with [`ReadError::Closed`] and stops all work for the layer. What is here
    /// can still be read with [`LayerData::try_read`].
    pub fn close(&self) {
        self.core.close(&self.layer);
    }

    /// What is stored of it.
    #[must_use]
    pub fn stored(&self) -> &Arc<StoredLayer> {
        &self.layer.stored
    }

    /// What the background fetcher did for it so far.
    #[must_use]
    pub fn background(&self) -> BackgroundCounts {
        self.layer.filling.counts()
    }

    /// How long the background fetcher took to fill it, once it has; told once.
    #[must_use]
    pub fn take_fill_time(&self) -> Option<Duration> {
        self.layer.filling.take_time()
    }

    fn range(&self, offset: u64, len: u64) -> Result<Range<u64>, ReadError> {
        let size = self.layer.spans.uncompressed_size();
        match offset.checked_add(len) {
            Some(end) if end <= size => Ok(offset..end),
            _ => Err(ReadError::OutOfRange { offset, len, size }),
        }
    }

    fn is_complete(&self) -> bool {
        self.layer.stored.fetched_bytes() >= self.layer.stored.size()
    }
}

impl LayerData for LazyLayer {
    fn try_read(&self, offset: u64, buf: &mut [u8]) -> Result<bool, ReadError> {
        let range = self.range(offset, buf.len() as u64)?;
        let filled = match self.layer.stored.read_at(offset, buf) {
            Ok(ReadOutcome::Filled) => true,
            Ok(ReadOutcome::Missing(_)) => false,
            Err(error @ StoreError::OutOfRange { .. }) => {
                return Err(ReadError::Store(error.to_string()));
            }
            Err(error) => {
                // Fetching may still help.
                if let Some(held_back) = self.core.log_limit.pass() {
                    tracing::warn!(layer = %self.layer.stored.digest(), error = %error, held_back, "the layer store cannot be read");
                }
                false
            }
        };
        // A read that is not filled comes again through `read`.
        if filled && !range.is_empty() && !self.is_complete() {
            self.core.note_read(&self.layer, range);
        }
        Ok(filled)
    }

    fn read(&self, offset: u64, len: usize, done: ReadDone) {
        let range = match self.range(offset, len as u64) {
            Ok(range) if range.is_empty() => return done(Ok(Bytes::new())),
            Ok(range) => range,
            Err(error) => return done(Err(error)),
        };
        self.core.read(&self.layer, range.clone(), done);
        if !self.is_complete() {
            self.core.note_read(&self.layer, range);
        }
    }

    fn status(&self) -> LayerStatus {
        LayerStatus {
            digest: self.layer.stored.digest(),
            size: self.layer.stored.size(),
            fetched_size: self.layer.stored.fetched_bytes(),
            error: self.layer.error(),
        }
    }
}

impl Drop for LazyLayer {
    fn drop(&mut self) {
        self.close();
    }
}
