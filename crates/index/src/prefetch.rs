//! Which spans of a layer hold the files that shall be prefetched.

use soci_ztoc::prefetch::PrefetchSpan;
use soci_ztoc::{FileMetadata, FileType, SpanTable};

/// Hard links to hard links are followed this far.
const MAX_LINKS: usize = 16;

/// A path without leading slash, `.` and `..` parts, as paths in a layer are compared.
#[must_use]
pub fn clean(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

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
    let mut path = path.to_vec();
    for _ in 0..MAX_LINKS {
        // Of several entries with one name, the last is the file.
        let entry = toc.iter().rev().find(|entry| clean(&entry.name) == path)?;
        match entry.file_type {
            FileType::Hardlink => path = clean(&entry.linkname),
            FileType::Reg => {
                let start = entry.uncompressed_offset;
                let end = start.checked_add(entry.uncompressed_size)?;
                let range = spans.covering(start..end);
                let first = spans.at_uncompressed(start)?.0;
                return Some(PrefetchSpan {
                    start_span: first,
                    end_span: range.end.saturating_sub(1).max(first),
                    priority: 0,
                });
            }
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::clean;

    #[test]
    fn paths_are_compared_in_their_clean_form() {
        for path in [
            "/usr/bin/env",
            "./usr/bin/env",
            "usr//bin/./env",
            "/x/../usr/bin/env/",
        ] {
            assert_eq!(clean(path.as_bytes()), b"usr/bin/env", "{path}");
        }
        assert_eq!(clean(b"/"), b"");
    }
}
