//! Spans that need more memory than one span should have.

use soci_ztoc::{SpanId, SpanTable};

use crate::request::length;

/// A span that needs more memory than one span should have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Oversized {
    /// Number of the span.
    pub span: u32,
    /// Memory that it needs, compressed and inflated, in bytes.
    pub bytes: u64,
    /// A quarter of the memory budget, in bytes.
    pub limit: u64,
}

impl Oversized {
    /// Returns the largest span of a layer, if it needs more than a quarter of `memory_budget` bytes:
    /// such a layer would hold up others, and is better not served lazily.
    #[must_use]
    pub fn find(spans: &SpanTable, memory_budget: u64) -> Option<Self> {
        let limit = memory_budget / 4;
        let costs = (0..spans.len()).filter_map(|number| {
            let span = spans.get(SpanId(number))?;
            let bytes = length(&span.compressed).saturating_add(length(&span.uncompressed));
            Some(Self {
                span: number,
                bytes,
                limit,
            })
        });
        let largest = costs.max_by_key(|span| span.bytes)?;
        (largest.bytes > limit).then_some(largest)
    }
}
