//! Recognising sequential readers of a layer, and what to fetch ahead of them.
//!
//! Offsets are those of the uncompressed tar: files that are neighbours there are mostly used one
//! after another, so a reader that goes from file to file is sequential too.

use std::ops::Range;

use ztoc::{SpanId, SpanTable};

/// How many sequential readers of a layer are followed.
const STREAMS: usize = 8;
/// How far from the expected place a read may be: the kernel sends the reads of one reader out of
/// order, and there are headers and small skipped files between those of the files that are read.
const SLACK: u64 = 1 << 20;
/// The first window, in compressed bytes.
const FIRST_WINDOW: u64 = 4 << 20;
/// How many reads in sequence make a sequential reader.
const SEQUENTIAL: u32 = 2;

/// The sequential readers of a layer.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    streams: Vec<Stream>,
    clock: u64,
}

#[derive(Debug)]
struct Stream {
    /// Where its next read is expected.
    next: u64,
    hits: u32,
    /// How far ahead to fetch, in compressed bytes.
    window: u64,
    /// The first span that has not been asked for.
    ahead: u32,
    used: u64,
}

impl Streams {
    /// Notes a read, and says what to fetch ahead of it.
    pub(crate) fn note(
        &mut self,
        read: Range<u64>,
        spans: &SpanTable,
        most: u64,
    ) -> Option<Range<u32>> {
        if most == 0 {
            return None;
        }
        self.clock += 1;
        let near = |stream: &&mut Stream| stream.next.abs_diff(read.start) <= SLACK;
        let found = self
            .streams
            .iter_mut()
            .filter(near)
            .min_by_key(|stream| stream.next.abs_diff(read.start));
        let Some(stream) = found else {
            self.start(read.end);
            return None;
        };
        stream.used = self.clock;
        if read.end <= stream.next {
            // Behind its front: a late read of the same reader, or somebody who looks again.
            return None;
        }
        stream.next = read.end;
        stream.hits = stream.hits.saturating_add(1);
        if stream.hits < SEQUENTIAL {
            return None;
        }
        let here = spans.at_uncompressed(read.end - 1)?;
        let front = spans.get(here)?.compressed.end;
        let start_of = |id: u32| spans.get(SpanId(id)).map(|span| span.compressed.start);
        let first = stream.ahead.max(here.0.saturating_add(1));
        // Not at every span, but when half of the window is used up: larger requests.
        if start_of(first)? >= front.saturating_add(stream.window / 2) {
            return None;
        }
        let until = front.saturating_add(stream.window);
        let mut end = first;
        while start_of(end).is_some_and(|start| start < until) {
            end += 1;
        }
        stream.ahead = end;
        stream.window = stream.window.saturating_mul(2).min(most);
        (first < end).then_some(first..end)
    }

    fn start(&mut self, next: u64) {
        if self.streams.len() >= STREAMS {
            let oldest = self
                .streams
                .iter()
                .enumerate()
                .min_by_key(|(_, stream)| stream.used);
            if let Some((oldest, _)) = oldest {
                self.streams.swap_remove(oldest);
            }
        }
        self.streams.push(Stream {
            next,
            hits: 1,
            window: FIRST_WINDOW,
            ahead: 0,
            used: self.clock,
        });
    }
}
