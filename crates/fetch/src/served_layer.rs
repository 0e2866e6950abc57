//! State of one layer within the fetcher.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use soci_registry::BlobSource;
use soci_store::StoredLayer;
use soci_ztoc::{SpanId, SpanTable};

use crate::fill_progress::FillProgress;
use crate::read_backwards::BackwardWalks;
use crate::read_error::{Cause, OriginFailing};
use crate::read_log::ReadLogs;
use crate::readahead::Streams;
use crate::reader_marks::ReaderMarks;
use crate::schedule::SpanLayout;
use crate::span_key::{LayerId, SpanKey};
use crate::{LayerFailure, ReadError};

/// A layer that is being served.
pub(crate) struct ServedLayer {
    pub(crate) id: LayerId,
    pub(crate) stored: Arc<StoredLayer>,
    pub(crate) spans: SpanTable,
    pub(crate) source: Arc<dyn BlobSource>,
    pub(crate) streams: Mutex<Streams>,
    pub(crate) walks: Mutex<BackwardWalks>,
    pub(crate) read_logs: ReadLogs,
    pub(crate) reads: ReaderMarks,
    /// Number of start-up profiles that are played.
    pub(crate) profiles: AtomicUsize,
    /// Whether a profile is played, or readers have found all that they read since one was: no other
    /// readahead is needed then.
    pub(crate) profile_suffices: AtomicBool,
    pub(crate) fill_progress: FillProgress,
    /// Number of retries inside its registry client when it was last looked at.
    retries: AtomicU64,
    closed: AtomicBool,
    /// The last error, until a fetch succeeds.
    error: Mutex<Option<LayerFailure>>,
}

impl ServedLayer {
    pub(crate) fn new(id: LayerId, stored: Arc<StoredLayer>, source: Arc<dyn BlobSource>) -> Self {
        Self {
            id,
            spans: stored.spans().clone(),
            source,
            streams: Mutex::default(),
            walks: Mutex::default(),
            read_logs: ReadLogs::default(),
            reads: ReaderMarks::new(stored.spans().len()),
            stored,
            profiles: AtomicUsize::new(0),
            profile_suffices: AtomicBool::new(false),
            fill_progress: FillProgress::default(),
            retries: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            error: Mutex::default(),
        }
    }

    pub(crate) const fn key(&self, span: u32) -> SpanKey {
        let layer = self.id;
        SpanKey { layer, span }
    }

    pub(crate) fn is_stored(&self, span: u32) -> bool {
        self.stored.has(SpanId(span))
    }

    /// The range of a span in the uncompressed tar.
    pub(crate) fn uncompressed(&self, span: u32) -> Option<Range<u64>> {
        self.spans.get(SpanId(span)).map(|span| span.uncompressed)
    }

    /// Whether the registry client retried requests for the layer since the last call.
    pub(crate) fn was_retried(&self) -> bool {
        let retries = self.source.retry_count();
        self.retries.fetch_max(retries, Ordering::Relaxed) < retries
    }

    /// Marks the layer as closed; `false` if it already was.
    pub(crate) fn close(&self) -> bool {
        !self.closed.swap(true, Ordering::AcqRel)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn error(&self) -> Option<LayerFailure> {
        self.error.lock().clone()
    }

    /// Records an error; `true` if it differs from the last one, and so is worth a log line.
    pub(crate) fn set_error(&self, error: LayerFailure) -> bool {
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

impl SpanLayout for Arc<ServedLayer> {
    fn compressed(&self, span: u32) -> Option<Range<u64>> {
        self.spans.get(SpanId(span)).map(|span| span.compressed)
    }

    fn ignores_ranges(&self) -> bool {
        self.source.ignores_ranges()
    }

    fn origin(&self) -> String {
        self.source.origin()
    }

    fn origin_failing(&self, span: u32, origin: &str, error: &Cause) -> ReadError {
        let (origin, source) = (origin.to_owned(), error.clone());
        ReadError::Source {
            blob: self.source.describe(),
            span,
            source: Arc::new(OriginFailing { origin, source }),
        }
    }
}
