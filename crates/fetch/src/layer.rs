//! What the fetcher keeps of one layer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use soci_registry::BlobSource;
use soci_store::StoredLayer;
use soci_ztoc::SpanTable;

use crate::filling::Filling;
use crate::readahead::Streams;

/// One layer that is being served.
pub(crate) struct Layer {
    /// Names it among the layers of this fetcher.
    pub(crate) number: u64,
    pub(crate) stored: Arc<StoredLayer>,
    pub(crate) spans: SpanTable,
    pub(crate) source: Arc<dyn BlobSource>,
    pub(crate) streams: Mutex<Streams>,
    pub(crate) filling: Filling,
    closed: AtomicBool,
    /// What went wrong last, until something succeeds.
    error: Mutex<Option<String>>,
}

impl Layer {
    pub(crate) fn new(number: u64, stored: Arc<StoredLayer>, source: Arc<dyn BlobSource>) -> Self {
        Self {
            number,
            spans: stored.spans().clone(),
            stored,
            source,
            streams: Mutex::default(),
            filling: Filling::default(),
            closed: AtomicBool::new(false),
            error: Mutex::default(),
        }
    }

    /// Closes it; `false` if it was closed.
    pub(crate) fn close(&self) -> bool {
        !self.closed.swap(true, Ordering::AcqRel)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn error(&self) -> Option<String> {
        self.error.lock().clone()
    }

    /// Notes an error; `true` if it is another than before, and so worth a line in the log.
    pub(crate) fn set_error(&self, error: String) -> bool {
        let mut last = self.error.lock();
        let new = last.as_ref() != Some(&error);
        *last = Some(error);
        new
    }

    pub(crate) fn clear_error(&self) {
        let mut last = self.error.lock();
        if last.is_some() {
            *last = None;
        }
    }
}
