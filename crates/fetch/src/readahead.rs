//! Detection of sequential readers of a layer, and the spans to fetch ahead of them.
//!
//! Offsets are those of the uncompressed tar. Files that are neighbours there are mostly used one
//! after another, so a reader that goes from file to file counts as sequential.

use std::ops::Range;

use soci_ztoc::{SpanId, SpanTable};

/// Number of readers of a layer that are followed.
const STREAMS: usize = 8;
/// Largest distance of a read from its expected offset, in bytes: the kernel sends the reads of one
/// reader out of order, and headers and skipped files lie between the files that are read.
const SLACK: u64 = 1 << 20;
/// Smallest window in compressed bytes. Above it, a window is as large as what its reader has read
/// so far: no more is fetched unused than was useful.
const FIRST_WINDOW: u64 = 2 << 20;
/// Number of reads in sequence that make a reader sequential.
const SEQUENTIAL: u32 = 2;

/// The sequential readers of a layer.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    streams: Vec<Stream>,
    clock: u64,
}

#[derive(Debug)]
struct Stream {
    /// Expected offset of its next read.
    next: u64,
    hits: u32,
    /// Offset in the compressed layer of its first span.
    began: Option<u64>,
    /// First span that has not been wanted for it.
    ahead: u32,
    used: u64,
}

impl Streams {
    /// Records a read and returns the spans to fetch ahead of it.
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
            // Behind its front: a late read of the same reader, or a repeated one.
            return None;
        }
        stream.next = read.end;
        stream.hits = stream.hits.saturating_add(1);
        if stream.hits < SEQUENTIAL {
            return None;
        }
        let last = spans.at_uncompressed(read.end - 1)?;
        let span = spans.get(last)?.compressed;
        let front = span.end;
        let began = *stream.began.get_or_insert(span.start);
        let window = front
            .saturating_sub(began)
            .clamp(FIRST_WINDOW.min(most), most);
        let start_of = |id: u32| spans.get(SpanId(id)).map(|span| span.compressed.start);
        let first = stream.ahead.max(last.0.saturating_add(1));
        // Only when half of the window is used up: fewer and larger requests.
        if start_of(first)? >= front.saturating_add(window / 2) {
            return None;
        }
        let until = front.saturating_add(window);
        let mut end = first;
        while start_of(end).is_some_and(|start| start < until) {
            end += 1;
        }
        stream.ahead = end;
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
            began: None,
            ahead: 0,
            used: self.clock,
        });
    }
}

/// A plain tar of a hundred spans of 1 MiB, whose compressed bytes are its uncompressed ones.
#[cfg(test)]
pub(crate) use tests::spans as sample_spans;

#[cfg(test)]
mod tests {
    use soci_ztoc::{BuildOptions, Builder, Compression};

    use super::*;

    const SPAN: u64 = 1 << 20;
    const MOST: u64 = 32 << 20;

    pub(crate) fn spans() -> SpanTable {
        let mut header = tar::Header::new_gnu();
        header.set_path("file").unwrap();
        header.set_size(99 * SPAN);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_cksum();
        let options = BuildOptions {
            span_size: SPAN,
            ..BuildOptions::default()
        };
        let mut builder = Builder::new(Compression::Uncompressed, options).unwrap();
        builder.write(header.as_bytes()).unwrap();
        for _ in 0..99 {
            builder
                .write(&vec![0; usize::try_from(SPAN).unwrap()])
                .unwrap();
        }
        builder.write(&[0; 1024]).unwrap();
        builder.finish().unwrap().ztoc.span_table()
    }

    /// Reads in pieces of 128 KiB; returns the end of what is fetched ahead.
    fn read(streams: &mut Streams, spans: &SpanTable, bytes: Range<u64>) -> Option<u32> {
        const PIECE: u64 = 128 << 10;
        let mut end = None;
        for start in bytes.step_by(usize::try_from(PIECE).unwrap()) {
            if let Some(ahead) = streams.note(start..start + PIECE, spans, MOST) {
                assert!(end.is_none_or(|end| end <= ahead.start), "nothing twice");
                end = Some(ahead.end);
            }
        }
        end
    }

    #[test]
    fn a_sequential_reader_gets_a_window_as_large_as_what_it_has_read() {
        let (spans, mut streams) = (spans(), Streams::default());
        assert_eq!(
            streams.note(0..4096, &spans, MOST),
            None,
            "one read is not a sequence"
        );
        for mib in [4, 16, 40] {
            let end = u64::from(read(&mut streams, &spans, 0..mib * SPAN).unwrap());
            assert!(end > mib, "{mib} read, fetched up to {end}");
            assert!(end <= 2 * mib + 2, "{mib} read, fetched up to {end}");
        }
        let end = u64::from(read(&mut streams, &spans, 40 * SPAN..60 * SPAN).unwrap());
        assert!(end <= 60 + 1 + MOST / SPAN, "fetched up to {end}");
    }

    #[test]
    fn scattered_reads_bring_no_readahead() {
        let (spans, mut streams) = (spans(), Streams::default());
        for start in [50, 3, 90, 20, 70, 33, 11, 60].map(|mib| mib * SPAN) {
            assert_eq!(streams.note(start..start + 4096, &spans, MOST), None);
        }
    }

    #[test]
    fn two_concurrent_readers_are_distinguished() {
        let (spans, mut streams) = (spans(), Streams::default());
        let mut ahead = [0, 0];
        for step in 0..64 {
            for (reader, base) in [0, 50 * SPAN].into_iter().enumerate() {
                let start = base + step * (128 << 10);
                if let Some(range) = streams.note(start..start + (128 << 10), &spans, MOST) {
                    ahead[reader] = range.end;
                }
            }
        }
        assert!((9..20).contains(&ahead[0]), "{ahead:?}");
        assert!((59..70).contains(&ahead[1]), "{ahead:?}");
    }
}
