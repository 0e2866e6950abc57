//! The last spans that could not be stored. Without them each read would fetch a whole span while
//! the disk is full.

use std::collections::VecDeque;

use parking_lot::Mutex;

use crate::budget::Permit;
use crate::pending_read::PendingRead;
use crate::served_layer::ServedLayer;
use crate::span_key::{LayerId, SpanKey};

/// Number of spans that are kept.
const MOST: usize = 2;

/// The last spans that could not be stored.
pub(crate) struct UnsavedSpans {
    /// Size of the largest span that is kept, in bytes: others would use up the memory budget.
    largest: u64,
    spans: Mutex<VecDeque<UnsavedSpan>>,
}

struct UnsavedSpan {
    key: SpanKey,
    /// Offset in the uncompressed tar.
    at: u64,
    bytes: Vec<u8>,
    _permit: Permit,
}

impl UnsavedSpans {
    pub(crate) fn new(largest: u64) -> Self {
        Self {
            largest,
            spans: Mutex::default(),
        }
    }

    pub(crate) fn keep(&self, layer: &ServedLayer, span: u32, bytes: &[u8], permit: Permit) {
        let Some(range) = layer.uncompressed(span) else {
            return;
        };
        if bytes.len() as u64 > self.largest || layer.is_closed() {
            return;
        }
        let key = layer.key(span);
        let mut spans = self.spans.lock();
        spans.retain(|kept| kept.key != key);
        spans.push_back(UnsavedSpan {
            key,
            at: range.start,
            bytes: bytes.to_vec(),
            _permit: permit,
        });
        if spans.len() > MOST {
            spans.pop_front();
        }
    }

    /// Fills a read from a span, if the span is kept.
    pub(crate) fn fill(&self, key: SpanKey, read: &PendingRead) -> bool {
        let spans = self.spans.lock();
        let found = spans.iter().find(|kept| kept.key == key);
        if let Some(found) = found {
            read.fill(found.at, &found.bytes);
        }
        found.is_some()
    }

    pub(crate) fn remove(&self, layer: LayerId) {
        self.spans.lock().retain(|kept| kept.key.layer != layer);
    }

    /// Drops all spans, so that their memory can be used.
    pub(crate) fn clear(&self) {
        self.spans.lock().clear();
    }
}
