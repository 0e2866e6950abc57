//! The threads that inflate a layer without building a zTOC: one reads, some inflate ahead, and the
//! caller's puts together in order.

use std::io::Read;

use super::ahead_memory::AheadMemory;
use super::chunks::{Chunk, ChunkReader, Chunks};
use super::cuts::Cuts;
use super::pieces::Permitted;
use super::pipeline::{Guard, Pipeline, feed};
use crate::gzip_scan::{GzipScanner, Sink};
use crate::{BuildError, EntryPoints, InflatedAhead};

/// Size of a chunk that is inflated in its turn, at most.
const IN_ORDER_CHUNK: usize = 256 << 10;

/// How many of those are read in advance.
const IN_ORDER: usize = 1;

impl Pipeline<'_> {
    /// Inflates a gzip layer into `sink`. `ahead` returns for each chunk whether it is inflated ahead,
    /// for which `memory` must have room.
    pub(crate) fn inflate(
        self,
        reader: impl Read + Send,
        memory: &AheadMemory,
        entries: Option<&EntryPoints>,
        ahead: &(dyn Fn() -> bool + Sync),
        mut sink: impl Sink,
    ) -> Result<InflatedAhead, BuildError> {
        let most = self.threads + 2;
        // Two: that of the chunk that is put together, and one more.
        let mut reader = ChunkReader::new(reader, self.chunk, 2);
        if let Some(entries) = entries {
            reader = reader.cut(Cuts::new(entries, self.chunk));
        }
        let mut scanner = GzipScanner::without_checkpoints()?;
        let mut counts = InflatedAhead::default();
        let first = match reader.read()? {
            Some(first) if !reader.is_at_end() => first,
            small => {
                let small = small.as_ref().map_or(&[][..], Chunk::data);
                scanner.write(small, u64::MAX, &mut sink)?;
                return scanner.finish().map(|_| counts);
            }
        };
        let chunks = Chunks::new(most);
        std::thread::scope(|scope| {
            // Also when this thread ends early.
            let _stop = Stop(&chunks);
            let start = |name: &str| std::thread::Builder::new().name(name.to_owned());
            let mut inflating = 0;
            for _ in 0..self.threads {
                let started = start("gzip-inflate").spawn_scoped(scope, || {
                    let _guard = Guard(&chunks);
                    // Each chunk that is inflated ahead has a permit, which counts its piece as well.
                    self.inflate_ahead(&chunks, usize::MAX);
                });
                // With fewer of them it takes longer.
                inflating += usize::from(started.is_ok());
            }
            let (queue, reader, any) = (&chunks, &mut reader, inflating > 0);
            let reading = start("gzip-read").spawn_scoped(scope, move || {
                let _guard = Guard(queue);
                // A chunk with a permit is inflated ahead. Without, chunks are small and not more than
                // the next: they are inflated in their turn.
                feed(first, queue, || {
                    let permit = (any && ahead()).then(|| memory.permit()).flatten();
                    let is_ahead = permit.is_some();
                    if !is_ahead && !queue.wait_for_few(IN_ORDER) {
                        return None;
                    }
                    let most = if is_ahead { usize::MAX } else { IN_ORDER_CHUNK };
                    let read = reader.read_for(permit, most);
                    Some(read.map(|chunk| chunk.map(|chunk| (chunk, is_ahead))))
                })
            })?;
            let assembled = self.assemble(&mut scanner, &chunks, &mut counts, &mut sink);
            let over = chunks.is_over();
            chunks.stop();
            let read = match reading.join() {
                Ok(read) => read,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            assembled?;
            read?;
            if over {
                let why = std::io::Error::other("inflating it was given up");
                return Err(BuildError::Read(why));
            }
            Ok(())
        })?;
        scanner.finish().map(|_| counts)
    }

    fn assemble(
        &self,
        scanner: &mut GzipScanner,
        chunks: &Chunks<Permitted<'_>>,
        counts: &mut InflatedAhead,
        sink: &mut impl Sink,
    ) -> Result<(), BuildError> {
        while let Some((chunk, piece)) = chunks.next() {
            if let Some((piece, permit)) = piece {
                scanner.write(rest_of(&chunk, scanner), piece.start, &mut *sink)?;
                // If it begins elsewhere, what was taken for a block was none.
                if scanner.adopt(&piece, &mut *sink)? {
                    let counted = match piece.entered {
                        true => &mut counts.from_checkpoints,
                        false => &mut counts.guessed,
                    };
                    *counted += 1;
                }
                self.pieces.pool.give_back(piece.into_buffers());
                drop(permit);
            }
            counts.chunks += 1;
            // The next chunk's piece begins at a block, which must not be begun here.
            let until = chunk.offset() * 8 + chunk.bits() as u64;
            scanner.write(rest_of(&chunk, scanner), until, &mut *sink)?;
        }
        Ok(())
    }
}

/// Ends the waiting of all threads.
struct Stop<'c, P>(&'c Chunks<P>);

impl<P> Drop for Stop<'_, P> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// What of the chunk was not taken in.
fn rest_of<'c>(chunk: &'c Chunk, scanner: &GzipScanner) -> &'c [u8] {
    let taken = scanner.total_in().saturating_sub(chunk.offset());
    let taken = usize::try_from(taken).unwrap_or(usize::MAX);
    chunk.data().get(taken..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::pipeline::tests::{flushed, gzip, layers, pipeline, tar, words};
    use super::*;
    use crate::{BuildOptions, Builder, Checkpoints, Compression, GzipCheckpoints, Ztoc};

    const CHUNK: usize = 50_000;

    fn ztoc(layer: &[u8], span_size: u64) -> Ztoc {
        let options = BuildOptions {
            span_size,
            ..BuildOptions::default()
        };
        let mut builder = Builder::new(Compression::Gzip, options).unwrap();
        builder.write(layer).unwrap();
        builder.finish().unwrap().ztoc
    }

    fn entries(ztoc: &Ztoc) -> EntryPoints {
        let index = Ztoc::parse_index(Bytes::from(ztoc.encode()));
        let index = index.expect("our reader accepts it");
        let blob = index.blob().clone();
        EntryPoints::new(index.spans, move |range| {
            let at = |at| usize::try_from(at).ok();
            Some(blob.get(at(range.start)?..at(range.end)?)?.to_vec())
        })
    }

    fn inflated_in_order(layer: &[u8]) -> Vec<u8> {
        let mut output = Vec::new();
        let mut stream = crate::GzipStream::new().unwrap();
        let written = stream.write(layer, |part| {
            output.extend_from_slice(part);
            Ok(())
        });
        written.and_then(|()| stream.finish()).unwrap();
        output
    }

    /// Inflates with entry points and compares the outcome with that of inflating in order.
    fn inflate(layer: &[u8], entries: Option<&EntryPoints>) -> InflatedAhead {
        let mut expected = Vec::new();
        let in_order = crate::GzipStream::new().and_then(|mut stream| {
            stream.write(layer, |output| {
                expected.extend_from_slice(output);
                Ok(())
            })?;
            stream.finish()
        });
        let mut actual = Vec::new();
        let memory = AheadMemory::of_chunks(12);
        let inflated = pipeline(CHUNK, 3).inflate(layer, &memory, entries, &|| true, |output| {
            actual.extend_from_slice(output);
            Ok(())
        });
        match (in_order, inflated) {
            (Ok(()), Ok(counts)) => {
                assert!(actual == expected, "other output");
                counts
            }
            (Err(expected), Err(actual)) => {
                assert_eq!(actual.to_string(), expected.to_string());
                InflatedAhead::default()
            }
            (expected, actual) => panic!("{expected:?} and {actual:?}"),
        }
    }

    #[test]
    fn a_layer_is_inflated_from_its_checkpoints_without_a_guess() {
        for (what, layer) in layers() {
            // Spans of more than two chunks are entered, and their rest is guessed.
            for span_size in [100_000, 400_000] {
                let counts = inflate(&layer, Some(&entries(&ztoc(&layer, span_size))));
                println!("{what}, {span_size}: {counts:?}");
                assert!(counts.from_checkpoints + counts.guessed < counts.chunks);
            }
        }
        let layer = gzip(6, &tar(&words(5, 3_000_000)));
        let counts = inflate(&layer, Some(&entries(&ztoc(&layer, 100_000))));
        assert_eq!(counts.guessed, 0, "{counts:?}");
        assert!(
            counts.from_checkpoints > counts.chunks * 3 / 4,
            "{counts:?}"
        );
        let counts = inflate(&layer, Some(&entries(&ztoc(&layer, 400_000))));
        assert!(counts.from_checkpoints > 3, "{counts:?}");
        assert!(
            counts.from_checkpoints + counts.guessed > counts.chunks * 3 / 4,
            "{counts:?}"
        );
    }

    /// Damages everything in a zTOC that says where and how a layer is entered.
    fn forgeries(ztoc: &Ztoc) -> Vec<(&'static str, Ztoc)> {
        let forged = |change: &dyn Fn(&mut GzipCheckpoints)| {
            let mut ztoc = ztoc.clone();
            if let Checkpoints::Gzip(gzip) = &mut ztoc.compression.checkpoints {
                change(gzip);
            }
            ztoc
        };
        vec![
            (
                "one byte of each window",
                forged(&|gzip| {
                    let windows = gzip.windows_mut();
                    windows
                        .iter_mut()
                        .step_by(32_768 / 3)
                        .for_each(|byte| *byte ^= 1);
                }),
            ),
            (
                "windows of zeros",
                forged(&|gzip| gzip.windows_mut().fill(0)),
            ),
            (
                "other bits",
                forged(&|gzip| {
                    let points = gzip.points.iter_mut().skip(1);
                    points.for_each(|point| point.bits = (point.bits + 3) % 8);
                }),
            ),
            (
                "a byte later",
                forged(&|gzip| {
                    gzip.points
                        .iter_mut()
                        .skip(1)
                        .for_each(|point| point.input += 1)
                }),
            ),
            (
                "no output in between",
                forged(&|gzip| gzip.points.iter_mut().for_each(|point| point.output = 0)),
            ),
            (
                "far more output",
                forged(&|gzip| gzip.points.iter_mut().for_each(|point| point.output *= 2)),
            ),
            (
                "a checkpoint at every byte",
                forged(&|gzip| {
                    for (at, point) in gzip.points.iter_mut().enumerate() {
                        (point.input, point.output) = (10 + at as u64, at as u64);
                    }
                }),
            ),
            (
                "at other places",
                forged(&|gzip| {
                    let points = gzip.points.iter_mut().enumerate().skip(1);
                    points.for_each(|(at, point)| point.input -= 100 * at as u64);
                }),
            ),
        ]
    }

    #[test]
    fn a_forged_ztoc_changes_no_output() {
        let content = words(5, 3_000_000);
        for layer in [gzip(6, &tar(&content)), flushed(6, &tar(&content), 9_000)] {
            let ztoc = ztoc(&layer, 100_000);
            assert!(inflate(&layer, Some(&entries(&ztoc))).from_checkpoints > 5);
            for (what, forged) in forgeries(&ztoc) {
                let counts = inflate(&layer, Some(&entries(&forged)));
                println!("{what}: {counts:?}");
            }
            // Another layer's.
            let other = gzip(6, &tar(&words(6, 3_000_000)));
            assert_eq!(
                inflate(&other, Some(&entries(&ztoc))).from_checkpoints,
                0,
                "the windows of another layer are used"
            );
        }
    }

    #[test]
    fn a_ztoc_whose_windows_cannot_be_read_is_done_without() {
        let layer = gzip(6, &tar(&words(5, 3_000_000)));
        let index = Ztoc::parse_index(Bytes::from(ztoc(&layer, 100_000).encode())).unwrap();
        let unreadable = EntryPoints::new(index.spans, |_| None);
        let counts = inflate(&layer, Some(&unreadable));
        assert_eq!(counts.from_checkpoints, 0);
        assert!(counts.guessed > 3, "{counts:?}");
    }

    #[test]
    fn a_damaged_layer_is_reported_as_when_inflating_in_order() {
        let layer = gzip(6, &tar(&words(5, 1_500_000)));
        let entries = entries(&ztoc(&layer, 100_000));
        for part in 1..20 {
            let at = layer.len() * part / 20;
            let mut damaged = layer.clone();
            damaged[at] ^= 0x55;
            inflate(&damaged, Some(&entries));
            inflate(&layer[..at], Some(&entries));
        }
    }

    #[test]
    fn layers_that_are_inflated_at_the_same_time_share_what_waits_ahead() {
        let layer = gzip(6, &tar(&words(5, 3_000_000)));
        let (shared, memory) = (pipeline(CHUNK, 3), AheadMemory::of_chunks(3));
        let expected = inflated_in_order(&layer);
        let ahead = std::sync::atomic::AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..5 {
                scope.spawn(|| {
                    let mut actual = Vec::new();
                    let counts = shared.inflate(&layer[..], &memory, None, &|| true, |output| {
                        assert!(memory.usage().0 <= memory.limit());
                        actual.extend_from_slice(output);
                        Ok(())
                    });
                    assert!(actual == expected, "other output");
                    let guessed = counts.unwrap().guessed;
                    ahead.fetch_add(guessed, std::sync::atomic::Ordering::Relaxed);
                });
            }
        });
        assert_eq!(memory.usage(), (0, memory.limit()));
        assert!(ahead.into_inner() > 0, "none is inflated ahead");
    }

    #[test]
    fn most_chunks_are_inflated_ahead_by_a_guess() {
        let layer = gzip(6, &tar(&words(5, 6_000_000)));
        let counts = inflate(&layer, None);
        assert!(counts.guessed > counts.chunks * 6 / 10, "{counts:?}");
    }
}
