//! The last spans that the store had no room for. Without them a reader of a full disk would fetch a
//! whole span for each of its reads.

use std::collections::VecDeque;

use parking_lot::Mutex;
use soci_ztoc::SpanId;

use crate::budget::Permit;
use crate::layer::Layer;
use crate::pending_read::PendingRead;

/// How many are kept.
const MOST: usize = 2;

/// The last spans that the store had no room for.
pub(crate) struct Unsaved {
    /// Larger ones are not kept, so that the memory budget stays useful.
    largest: u64,
    spans: Mutex<VecDeque<Span>>,
}

struct Span {
    layer: u64,
    span: u32,
    at: u64,
    bytes: Vec<u8>,
    _permit: Permit,
}

impl Unsaved {
    pub(crate) fn new(largest: u64) -> Self {
        Self {
            largest,
            spans: Mutex::default(),
        }
    }

    pub(crate) fn keep(&self, layer: &Layer, span: u32, bytes: &[u8], permit: Permit) {
        let Some(found) = layer.spans.get(SpanId(span)) else {
            return;
        };
        if bytes.len() as u64 > self.largest || layer.is_closed() {
            return;
        }
        let mut spans = self.spans.lock();
        spans.retain(|kept| (kept.layer, kept.span) != (layer.number, span));
        spans.push_back(Span {
            layer: layer.number,
            span,
            at: found.uncompressed.start,
            bytes: bytes.to_vec(),
            _permit: permit,
        });
        if spans.len() > MOST {
            spans.pop_front();
        }
    }

    /// Fills what is wanted of a span, if it is here.
    pub(crate) fn fill(&self, layer: &Layer, span: u32, read: &PendingRead) -> bool {
        let spans = self.spans.lock();
        let found = spans
            .iter()
            .find(|kept| (kept.layer, kept.span) == (layer.number, span));
        if let Some(found) = found {
            read.fill(found.at, &found.bytes);
        }
        found.is_some()
    }

    pub(crate) fn remove(&self, layer: u64) {
        self.spans.lock().retain(|kept| kept.layer != layer);
    }

    /// Gives the memory back to something larger.
    pub(crate) fn clear(&self) {
        self.spans.lock().clear();
    }
}
