//! A file that a start reads, or probably will: what of it is needed, as far as is known.

use std::ops::Range;
use std::sync::Arc;

use soci_fetch::LazyLayer;
use soci_layerfs::{ElfFindings, ElfWalk};
use soci_profile::{BLOCK, Blocks};

/// A range of a file is pushed only if it has whole pages, in bytes.
const PAGE: u64 = 4096;

/// A file of one of the layers of a start.
#[derive(Debug)]
pub(crate) struct HintedFile {
    pub(crate) layer: usize,
    pub(crate) ino: u64,
    /// Position of its content in the tar.
    pub(crate) start: u64,
    pub(crate) len: u64,
    /// `None`: its structure is not looked at.
    pub(crate) walk: Option<ElfWalk>,
    /// Whether a container has read it; otherwise it is a guess that it will.
    pub(crate) is_read: bool,
    /// Whether its structure is known.
    pub(crate) is_elf: bool,
    /// Ranges that will be read, and are not in the page cache yet.
    pub(crate) expected: Vec<Range<u64>>,
}

impl HintedFile {
    /// The part of the tar that holds a range of the file.
    pub(crate) fn in_tar(&self, range: &Range<u64>) -> Range<u64> {
        self.start.saturating_add(range.start)..self.start.saturating_add(range.end)
    }

    /// The ranges of the file that lie in these 64 KiB blocks of the tar.
    pub(crate) fn of_blocks(&self, blocks: &Blocks) -> Vec<Range<u64>> {
        let end = self.start.saturating_add(self.len);
        let near = blocks.within(Blocks::touched_by(&(self.start..end)));
        near.map(|run| u64::from(run.start) * BLOCK..u64::from(run.end) * BLOCK)
            .map(|range| {
                let (first, last) = (range.start.max(self.start), range.end.min(end));
                first - self.start..last.saturating_sub(self.start)
            })
            .filter(|range| range.start < range.end)
            .collect()
    }

    /// Looks further into the structure of the file, as far as it is stored.
    pub(crate) fn look(&mut self, data: &Arc<LazyLayer>) -> ElfFindings {
        let Some(walk) = &mut self.walk else {
            return ElfFindings::default();
        };
        let (stored, start) = (data.stored(), self.start);
        let found = walk.step(|at, buffer| {
            let read = stored.read_at(start.saturating_add(at), buffer);
            matches!(read, Ok(soci_store::ReadOutcome::Filled))
        });
        if walk.is_done() {
            self.walk = None;
        }
        found
    }

    /// Takes out of the expected ranges what is stored, as ranges of whole pages.
    pub(crate) fn take_stored(&mut self, data: &Arc<LazyLayer>) -> Vec<Range<u64>> {
        let spans = data.stored().spans();
        let (mut stored, mut left) = (Vec::new(), Vec::new());
        for range in std::mem::take(&mut self.expected) {
            for id in spans.covering(self.in_tar(&range)) {
                let id = soci_ztoc::SpanId(id);
                let Some(span) = spans.get(id).map(|span| span.uncompressed) else {
                    continue;
                };
                let part = span.start.saturating_sub(self.start).max(range.start)
                    ..span.end.saturating_sub(self.start).min(range.end);
                if part.start >= part.end {
                    continue;
                }
                match data.stored().has(id) {
                    true => stored.push(part),
                    false => left.push(part),
                }
            }
        }
        self.expected = left;
        whole_pages(stored, self.len)
    }
}

/// Joins ranges, and leaves out pages that they have only a part of.
fn whole_pages(mut ranges: Vec<Range<u64>>, len: u64) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    let inwards = |range: Range<u64>| {
        let end = if range.end >= len {
            len
        } else {
            range.end / PAGE * PAGE
        };
        range.start.next_multiple_of(PAGE)..end
    };
    let pages = joined.into_iter().map(inwards);
    pages.filter(|range| range.start < range.end).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_pages_are_read() {
        let of = |ranges: &[(u64, u64)]| -> Vec<(u64, u64)> {
            let ranges = ranges.iter().map(|(start, end)| *start..*end);
            let pages = whole_pages(ranges.collect(), 20_000).into_iter();
            pages.map(|range| (range.start, range.end)).collect()
        };
        assert_eq!(of(&[(5000, 9000), (0, 5000)]), [(0, 8192)]);
        assert_eq!(of(&[(100, 8191)]), []);
        let last = [(4096, 8192), (16_384, 20_000)];
        assert_eq!(of(&[(100, 8192), (16_000, 20_000)]), last);
    }

    #[test]
    fn blocks_of_the_tar_are_ranges_of_the_file() {
        let file = HintedFile {
            layer: 0,
            ino: 2,
            start: 65536 + 512,
            len: 3 * 65536,
            walk: None,
            is_read: true,
            is_elf: false,
            expected: Vec::new(),
        };
        let of = |runs: &[(u32, u32)]| -> Vec<(u64, u64)> {
            let blocks = Blocks::new(runs.iter().map(|(start, end)| *start..*end));
            let ranges = file.of_blocks(&blocks).into_iter();
            ranges.map(|range| (range.start, range.end)).collect()
        };
        assert_eq!(of(&[(0, 1), (9, 10)]), []);
        assert_eq!(of(&[(0, 2), (3, 4)]), [(0, 65024), (130_560, 196_096)]);
        assert_eq!(of(&[(0, 9)]), [(0, 196_608)]);
    }
}
