//! Which spans of a layer hold the files that shall be prefetched.

use soci_ztoc::prefetch::PrefetchSpan;
use soci_ztoc::{FileMetadata, SpanTable, find_file};

/// For each of the (clean) paths: the spans of its content, if the layer has it.
pub(crate) fn locate(
    toc: &[FileMetadata],
    spans: &SpanTable,
    paths: &[Vec<u8>],
) -> Vec<Option<PrefetchSpan>> {
    paths
        .iter()
        .map(|path| locate_one(toc, spans, path))
        .collect()
}

fn locate_one(toc: &[FileMetadata], spans: &SpanTable, path: &[u8]) -> Option<PrefetchSpan> {
    let entry = find_file(toc, path).ok()?;
    let start = entry.uncompressed_offset;
    let end = start.checked_add(entry.uncompressed_size)?;
    let range = spans.covering(start..end);
    let first = spans.at_uncompressed(start)?.0;
    Some(PrefetchSpan {
        start_span: first,
        end_span: range.end.saturating_sub(1).max(first),
        priority: 0,
    })
}
