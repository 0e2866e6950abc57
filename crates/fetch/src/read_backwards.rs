//! Detection of readers that go backwards through a layer, and the spans to fetch before them.
//!
//! At the end of a program the destructors of a library walk its code from the end to the start, page
//! after page. Each read of such a walk ends where the one before it began, or a little before.

use std::ops::Range;

use soci_ztoc::{SpanId, SpanTable};

/// Number of walks of a layer that are followed.
const WALKS: usize = 8;
/// Largest distance of a read's end from the start of the read before it, in bytes.
const SLACK: u64 = 256 << 10;
/// Number of steps back in a row that make a walk. More than for a forward reader: scattered reads
/// of one file go back as often as not.
const STEPS: u32 = 4;
/// Smallest window in compressed bytes. Above it, a window is as large as what has been walked.
const FIRST_WINDOW: u64 = 2 << 20;

/// The readers of a layer that go backwards.
#[derive(Debug, Default)]
pub(crate) struct BackwardWalks {
    walks: Vec<Walk>,
    clock: u64,
}

#[derive(Debug)]
struct Walk {
    /// Start of its last read.
    start: u64,
    steps: u32,
    /// Offset in the compressed layer of the end of its first span.
    began: Option<u64>,
    /// The first span that has been wanted for it.
    ahead: u32,
    used: u64,
}

impl BackwardWalks {
    /// Records a read and returns the spans to fetch before it.
    pub(crate) fn note(
        &mut self,
        read: &Range<u64>,
        spans: &SpanTable,
        most: u64,
    ) -> Option<Range<u32>> {
        self.clock += 1;
        let distance = |walk: &Walk| walk.start.abs_diff(read.end);
        let near = |walk: &&mut Walk| distance(walk) <= SLACK;
        let found = self.walks.iter_mut().filter(near);
        let Some(walk) = found.min_by_key(|walk| distance(walk)) else {
            self.start(read.start);
            return None;
        };
        walk.used = self.clock;
        if read.start >= walk.start {
            walk.start = read.start;
            walk.steps = 0;
            walk.began = None;
            walk.ahead = u32::MAX;
            return None;
        }
        walk.start = read.start;
        walk.steps = walk.steps.saturating_add(1);
        if walk.steps < STEPS {
            return None;
        }
        let first = spans.at_uncompressed(read.start)?;
        let span = spans.get(first)?.compressed;
        let began = *walk.began.get_or_insert(span.end);
        let window = began
            .saturating_sub(span.start)
            .clamp(FIRST_WINDOW.min(most), most);
        let end = walk.ahead.min(first.0);
        let end_of = |id: u32| spans.get(SpanId(id)).map(|span| span.compressed.end);
        // Only when half of the window is used up: fewer and larger requests.
        if end_of(end.checked_sub(1)?)? <= span.start.saturating_sub(window / 2) {
            return None;
        }
        let until = span.start.saturating_sub(window);
        let mut start = end;
        while let Some(before) = start.checked_sub(1)
            && end_of(before).is_some_and(|end| end > until)
        {
            start = before;
        }
        walk.ahead = start;
        (start < end).then_some(start..end)
    }

    fn start(&mut self, start: u64) {
        if self.walks.len() >= WALKS {
            let oldest = self.walks.iter().enumerate();
            let oldest = oldest.min_by_key(|(_, walk)| walk.used);
            if let Some((oldest, _)) = oldest {
                self.walks.swap_remove(oldest);
            }
        }
        self.walks.push(Walk {
            start,
            steps: 0,
            began: None,
            ahead: u32::MAX,
            used: self.clock,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::readahead::sample_spans;

    const SPAN: u64 = 1 << 20;
    const MOST: u64 = 32 << 20;
    const PAGE: u64 = 16 << 10;

    #[test]
    fn a_backward_reader_gets_a_window_as_large_as_what_it_has_read() {
        let (spans, mut walks) = (sample_spans(), BackwardWalks::default());
        let mut lowest = u32::MAX;
        let mut at = 90 * SPAN;
        while at > 20 * SPAN {
            at -= PAGE;
            // As the kernel reads: from the page on, not before it.
            if let Some(ahead) = walks.note(&(at..at + PAGE), &spans, MOST) {
                assert!(ahead.end <= lowest, "nothing twice");
                lowest = ahead.start;
            }
            let walked = 90 - at / SPAN;
            let ahead = (at / SPAN).saturating_sub(u64::from(lowest));
            assert!(
                lowest == u32::MAX || ahead <= walked.max(2) + 1,
                "{ahead} of {walked}"
            );
        }
        assert!(u64::from(lowest) <= 20, "{lowest}");
        while at > 0 {
            at -= PAGE;
            walks.note(&(at..at + PAGE), &spans, MOST);
        }
    }

    #[test]
    fn forward_and_scattered_readers_are_no_backward_walk() {
        let (spans, mut walks) = (sample_spans(), BackwardWalks::default());
        for at in (0..20 * SPAN).step_by(128 << 10) {
            assert_eq!(walks.note(&(at..at + (128 << 10)), &spans, MOST), None);
        }
        let mut seed = 7_u64;
        for _ in 0..200 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = (seed >> 33) % (90 * SPAN);
            assert_eq!(walks.note(&(at..at + PAGE), &spans, MOST), None);
        }
    }
}
