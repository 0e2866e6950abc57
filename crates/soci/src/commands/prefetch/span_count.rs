//! The number of spans in a prefetch artifact.

use soci_ztoc::prefetch::{Prefetch, PrefetchSpan};

/// Counts the spans that a prefetch artifact lists.
pub(super) fn spans(artifact: &Prefetch) -> u64 {
    let count = |span: &PrefetchSpan| {
        u64::from(span.end_span) - u64::from(span.start_span.min(span.end_span)) + 1
    };
    artifact.prefetch_spans.iter().map(count).sum()
}
