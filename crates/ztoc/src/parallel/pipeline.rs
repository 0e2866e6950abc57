//! The threads that build a zTOC: one reads, some inflate ahead, one assembles in order, two hash.

use std::io::Read;

use super::ahead_memory::AheadMemory;
use super::chunks::{Chunk, ChunkReader, Chunks, Pool};
use super::hashing::HashThreads;
use super::pieces::{MAX_THREADS, Permitted, Pieces, UNPACKED_CHUNK};
use super::speculate::{Buffers, Speculator};
use crate::build::{Assembly, BuildOptions, Builder, Built};
use crate::{BuildError, Compression};

/// How much of a layer is inflated at a time, in compressed bytes. Smaller ones take less memory;
/// larger ones have fewer markers in proportion.
const CHUNK: usize = 3 << 20;

/// What one piece may take in memory, in bytes: values with markers take two each. What is left of its
/// chunk is inflated in order.
const MEMORY: usize = 4 * CHUNK;

/// Pieces that were inflated ahead, of all layers that are indexed at the same time. Together they keep no more
/// than one layer would; chunks beyond that are inflated in their turn, which keeps the cores busy,
/// too. (Each layer has its own chunks of compressed bytes.)
static PIECES: Pieces = Pieces::new();

/// How to share the work.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pipeline<'a> {
    /// The size of a chunk in bytes.
    pub(super) chunk: usize,
    /// What a piece may take in bytes.
    pub(super) memory: usize,
    /// How many threads inflate ahead.
    pub(super) threads: usize,
    pub(super) pieces: &'a Pieces,
}

impl<'a> Pipeline<'a> {
    pub(crate) fn of_cores(cores: usize) -> Self {
        Self {
            chunk: CHUNK,
            memory: MEMORY,
            // On one core, what is inflated ahead only costs more.
            threads: if cores == 1 {
                0
            } else {
                cores.min(MAX_THREADS)
            },
            pieces: &PIECES,
        }
    }

    /// For a layer that is only inflated, with the help of so many threads.
    pub(crate) fn for_unpacking(threads: usize, memory: &'a AheadMemory) -> Self {
        Self {
            chunk: UNPACKED_CHUNK,
            memory: 4 * UNPACKED_CHUNK,
            threads: threads.min(MAX_THREADS),
            pieces: &memory.pieces,
        }
    }

    /// With small chunks, to try what is between them.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) const fn with_chunks_of(chunk: usize) -> Self {
        Self {
            chunk,
            memory: 2 << 20,
            threads: 2,
            pieces: &PIECES,
        }
    }

    pub(crate) fn build(
        self,
        reader: impl Read,
        compression: Compression,
        options: BuildOptions,
    ) -> Result<Built, BuildError> {
        let threads = match compression {
            Compression::Gzip => self.threads,
            Compression::Uncompressed => 0,
        };
        // The chunks that are inflated, the next of the last of them, and one that is read.
        let ahead = threads + 2;
        // One more is put together, and each of the two hashing threads has one.
        let mut reader = ChunkReader::new(reader, self.chunk, ahead + 3);
        let first = match reader.read()? {
            Some(first) if first.data().len() == self.chunk => first,
            small => {
                let mut builder = Builder::new(compression, options)?;
                if let Some(small) = small {
                    builder.write(small.data())?;
                }
                return builder.finish();
            }
        };
        let assembly = Assembly::new(compression, options)?;
        let chunks = Chunks::new(ahead);
        std::thread::scope(|scope| {
            let _guard = Guard(&chunks);
            let start = |name: &str| std::thread::Builder::new().name(name.to_owned());
            let assembling = start("ztoc-assemble").spawn_scoped(scope, || {
                let _guard = Guard(&chunks);
                let built = assemble(assembly, &chunks, &self.pieces.pool);
                // No thread need continue after a failure.
                chunks.stop();
                built
            })?;
            let mut inflating = 0;
            for _ in 0..threads {
                let started = start("ztoc-inflate").spawn_scoped(scope, || {
                    let _guard = Guard(&chunks);
                    self.inflate_ahead(&chunks, ahead);
                });
                // With fewer of them it takes longer.
                inflating += usize::from(started.is_ok());
            }
            let ahead = inflating > 0;
            let read = || Some(reader.read().map(|chunk| chunk.map(|chunk| (chunk, ahead))));
            let failure = feed(first, &chunks, read).err();
            match (assembling.join(), failure) {
                (Err(panic), _) => std::panic::resume_unwind(panic),
                (Ok(Err(error)), _) => Err(error),
                (Ok(_), Some(error)) => Err(error.into()),
                (Ok(Ok(Some(built))), None) => Ok(built),
                (Ok(Ok(None)), None) => {
                    let why = std::io::Error::other("inflating it was given up");
                    Err(BuildError::Read(why))
                }
            }
        })
    }

    /// Inflates chunks before it is their turn, as long as there are fewer than `max` pieces.
    pub(super) fn inflate_ahead(self, chunks: &Chunks<Permitted<'a>>, max: usize) {
        let pool = &self.pieces.pool;
        let mut speculator = Speculator::new(self.memory);
        while let Some((number, chunk, next)) = chunks.todo() {
            let piece = speculator.as_mut().and_then(|speculator| {
                let permit = self.pieces.permit(max)?;
                let next = next.as_ref().map_or(&[][..], |next| next.data());
                let piece = match chunk.entry() {
                    Some(entry) => speculator.enter(&chunk, entry, pool.take()),
                    None => speculator.inflate(&chunk, next, pool.take()),
                };
                let piece = piece.map_err(|buffers| pool.give_back(buffers)).ok()?;
                Some((piece, permit))
            });
            chunks.done(number, piece);
        }
    }
}

/// Ends the others' waiting when its thread panics.
pub(super) struct Guard<'c, P>(pub(super) &'c Chunks<P>);

impl<P> Drop for Guard<'_, P> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop();
        }
    }
}

/// Reads chunks until the end or [`Chunks::stop`], which `read` may notice too: it then returns `None`.
/// With a chunk it returns whether that is inflated ahead.
pub(super) fn feed<P>(
    first: Chunk,
    chunks: &Chunks<P>,
    mut read: impl FnMut() -> Option<std::io::Result<Option<(Chunk, bool)>>>,
) -> std::io::Result<()> {
    // The first begins where inflating in order does.
    chunks.push(first, false);
    while chunks.wait_for_room() {
        let Some(read) = read() else { break };
        match read {
            Ok(Some((chunk, inflate_ahead))) => chunks.push(chunk, inflate_ahead),
            Ok(None) => {
                chunks.end();
                break;
            }
            Err(error) => {
                chunks.stop();
                return Err(error);
            }
        }
    }
    Ok(())
}

/// Puts chunks together in order; `None` when that was given up.
fn assemble(
    mut assembly: Assembly,
    chunks: &Chunks<Permitted<'_>>,
    pool: &Pool<Buffers>,
) -> Result<Option<Built>, BuildError> {
    let hashing = HashThreads::start()?;
    while let Some((chunk, piece)) = chunks.next() {
        assembly.take(&chunk, piece.as_ref().map(|(piece, _)| piece))?;
        if let Some((piece, _permit)) = piece {
            pool.give_back(piece.into_buffers());
        }
        let checkpoints = assembly.checkpoints_up_to(chunk.end());
        hashing.update(chunk, checkpoints)?;
    }
    if chunks.is_over() {
        return Ok(None);
    }
    assembly.finish(hashing.finish()?).map(Some)
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write as _;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;

    use super::*;

    /// Pseudo-random bytes.
    pub(in crate::parallel) fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut state = seed | 1;
        let bytes = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        });
        bytes.take(len).collect()
    }

    /// Words in random order, in which matches are long and far.
    pub(in crate::parallel) fn words(seed: u64, len: usize) -> Vec<u8> {
        let words: Vec<_> = (0..500)
            .map(|word| noise(word + 7, 3 + usize::from(word.to_le_bytes()[0] % 9)))
            .collect();
        let order = noise(seed, 2 * len / 3);
        let chosen = order.chunks_exact(2).map(|pair| {
            let at = usize::from(u16::from_le_bytes([pair[0], pair[1]]));
            words[at % words.len()].as_slice()
        });
        let mut text = chosen.collect::<Vec<_>>().concat();
        text.truncate(len);
        text
    }

    /// Few bytes more than others, in no order: hardly a match.
    pub(in crate::parallel) fn letters(seed: u64, len: usize) -> Vec<u8> {
        let noise = noise(seed, len).into_iter();
        noise.map(|byte| b'0' + byte % 64).collect()
    }

    /// A tar of one file.
    pub(in crate::parallel) fn tar(content: &[u8]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, "file", content).unwrap();
        builder.into_inner().unwrap()
    }

    pub(in crate::parallel) fn gzip(level: u32, data: &[u8]) -> Vec<u8> {
        let level = flate2::Compression::new(level);
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    /// With a block, and an empty one, every few bytes.
    pub(in crate::parallel) fn flushed(level: u32, data: &[u8], every: usize) -> Vec<u8> {
        let level = flate2::Compression::new(level);
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
        for part in data.chunks(every) {
            encoder.write_all(part).unwrap();
            encoder.flush().unwrap();
        }
        encoder.finish().unwrap()
    }

    /// What is in layers, each kind long enough for many small chunks.
    pub(in crate::parallel) fn layers() -> Vec<(&'static str, Vec<u8>)> {
        let mixed = [
            words(1, 1_500_000),
            noise(2, 300_000),
            letters(3, 700_000),
            vec![0; 2_000_000],
            words(4, 500_000),
        ];
        let (words, letters) = (tar(&words(5, 3_000_000)), tar(&letters(6, 1_000_000)));
        let mixed = tar(&mixed.concat());
        vec![
            ("words", gzip(6, &words)),
            ("words, flushed", flushed(6, &words, 9_000)),
            ("letters", gzip(6, &letters)),
            ("letters, flushed", flushed(9, &letters, 20_000)),
            ("mixed", gzip(6, &mixed)),
            ("mixed, fast", gzip(1, &mixed)),
            ("mixed, flushed", flushed(6, &mixed, 30_000)),
            ("stored", gzip(0, &mixed)),
            ("zeros", gzip(6, &tar(&vec![0; 40_000_000]))),
            ("noise", gzip(6, &tar(&noise(7, 1_000_000)))),
        ]
    }

    fn options() -> BuildOptions {
        BuildOptions {
            span_size: 100_000,
            diff_id: true,
            ..BuildOptions::default()
        }
    }

    fn in_order(layer: &[u8]) -> Result<Built, BuildError> {
        let mut builder = Builder::new(Compression::Gzip, options())?;
        builder.write(layer)?;
        builder.finish()
    }

    /// What a piece may take here.
    const ROOM: usize = 2 << 20;

    /// A pipeline that shares its limits with no other.
    pub(in crate::parallel) fn pipeline(chunk: usize, threads: usize) -> Pipeline<'static> {
        Pipeline {
            chunk,
            memory: ROOM,
            threads,
            pieces: Box::leak(Box::new(Pieces::new())),
        }
    }

    /// Both ways of inflating agree.
    fn check_inflating(layer: &[u8], chunk: usize) {
        let mut expected = Vec::new();
        let in_order = crate::GzipStream::new().and_then(|mut stream| {
            stream.write(layer, |output| {
                expected.extend_from_slice(output);
                Ok(())
            })?;
            stream.finish()
        });
        let mut actual = Vec::new();
        let asked = AtomicUsize::new(0);
        let ahead = || !asked.fetch_add(1, Ordering::Relaxed).is_multiple_of(4);
        let memory = AheadMemory::of_chunks(12);
        let parallel = pipeline(chunk, 3).inflate(layer, &memory, None, &ahead, |output| {
            actual.extend_from_slice(output);
            Ok(())
        });
        let text = |result: Result<(), BuildError>| result.err().map(|error| error.to_string());
        let succeeded = in_order.is_ok();
        assert_eq!(text(in_order), text(parallel.map(drop)));
        assert!(!succeeded || actual == expected, "other output");
    }

    /// Both ways of building agree.
    fn check(layer: &[u8], chunk: usize) {
        check_inflating(layer, chunk);
        let expected = in_order(layer);
        let actual = pipeline(chunk, 3).build(layer, Compression::Gzip, options());
        match (expected, actual) {
            (Ok(expected), Ok(actual)) => {
                assert!(actual.ztoc == expected.ztoc, "another zTOC");
                assert_eq!(actual.compressed_digest, expected.compressed_digest);
                assert_eq!(actual.diff_id, expected.diff_id);
            }
            (Err(expected), Err(actual)) => assert_eq!(actual.to_string(), expected.to_string()),
            (expected, actual) => panic!("{:?} and {:?}", expected.err(), actual.err()),
        }
    }

    /// How many pieces end in which way.
    #[derive(Debug, Default)]
    struct Ends {
        chunks: usize,
        adopted: usize,
        /// At the next chunk's first block, with markers up to there.
        met_with_markers: usize,
        /// The same, without.
        met_without_markers: usize,
        /// At the end of a member, with markers up to there.
        ended_with_markers: usize,
        ended_without_markers: usize,
        /// Before that, for want of memory.
        cut: usize,
    }

    /// Adds what becomes of a layer's chunks.
    fn count(ends: &mut Ends, layer: &[u8], chunk: usize, memory: usize) {
        let mut speculator = Speculator::new(memory).unwrap();
        let mut assembly = Assembly::new(Compression::Gzip, options()).unwrap();
        let mut reader = ChunkReader::new(layer, chunk, 3);
        let mut chunks = Vec::new();
        while let Some(chunk) = reader.read().unwrap() {
            chunks.push(chunk);
        }
        let pieces = chunks.iter().enumerate().skip(1).map(|(at, chunk)| {
            let next = chunks.get(at + 1).map_or(&[][..], Chunk::data);
            let buffers = Buffers::default();
            let piece = speculator.inflate(chunk, next, buffers);
            piece.ok()
        });
        let pieces: Vec<_> = std::iter::once(None).chain(pieces).collect();
        for (at, (chunk, piece)) in chunks.iter().zip(&pieces).enumerate() {
            ends.chunks += 1;
            ends.adopted += usize::from(assembly.take(chunk, piece.as_ref()).unwrap());
            let Some(piece) = piece else { continue };
            let markers = piece.windowed().is_empty();
            let next = pieces.get(at + 1).and_then(Option::as_ref);
            let met = next.is_some_and(|next| next.start == piece.end);
            *match (piece.ended, met, markers) {
                (true, _, true) => &mut ends.ended_with_markers,
                (true, _, false) => &mut ends.ended_without_markers,
                (false, true, true) => &mut ends.met_with_markers,
                (false, true, false) => &mut ends.met_without_markers,
                (false, false, _) => &mut ends.cut,
            } += 1;
        }
    }

    #[test]
    fn layers_inflated_ahead_give_the_same_ztoc() {
        for (what, layer) in layers() {
            println!("{what}: {} bytes", layer.len());
            for chunk in [30_000, 131_072, 400_003] {
                check(&layer, chunk);
            }
        }
    }

    #[test]
    fn pieces_end_in_every_possible_way_in_what_the_tests_inflate() {
        let mut ends = Ends::default();
        for (what, layer) in layers() {
            for chunk in [30_000, 131_072, 400_003] {
                count(&mut ends, &layer, chunk, ROOM);
            }
            println!("up to {what}: {ends:?}");
        }
        let tar = tar(&letters(8, 300_000));
        count(&mut ends, &gzip(6, &tar), 30_000, 100_000);
        println!("all: {ends:?}");
        let ways = [
            ends.met_with_markers,
            ends.met_without_markers,
            ends.ended_with_markers,
            ends.ended_without_markers,
            ends.cut,
        ];
        assert!(ways.iter().all(|count| *count > 0), "{ends:?}");
    }

    #[test]
    fn most_chunks_that_are_inflated_ahead_are_of_use() {
        for tar in [tar(&words(6, 8_000_000)), tar(&letters(6, 4_000_000))] {
            let mut ends = Ends::default();
            count(&mut ends, &gzip(6, &tar), 200_000, 8 << 20);
            let met = ends.met_with_markers + ends.met_without_markers;
            assert!(ends.chunks > 10, "{ends:?}");
            assert!(met > ends.chunks * 8 / 10, "{ends:?}");
            assert!(ends.adopted > ends.chunks * 8 / 10, "{ends:?}");
        }
    }

    #[test]
    fn one_core_and_plain_tars_go_the_same_way_without_it() {
        let tar = tar(&words(10, 2_000_000));
        let expected = in_order(&gzip(6, &tar)).unwrap();
        let built = pipeline(50_000, 0).build(&gzip(6, &tar)[..], Compression::Gzip, options());
        assert!(built.unwrap().ztoc == expected.ztoc);
        let mut builder = Builder::new(Compression::Uncompressed, options()).unwrap();
        builder.write(&tar).unwrap();
        let expected = builder.finish().unwrap();
        let built = pipeline(50_000, 3).build(&tar[..], Compression::Uncompressed, options());
        let built = built.unwrap();
        assert!(built.ztoc == expected.ztoc);
        assert_eq!(built.compressed_digest, expected.compressed_digest);
    }

    #[test]
    fn members_may_end_anywhere() {
        let tar = tar(&words(7, 3_000_000));
        for len in [100, 10_000, 32_769, 400_000, 1_000_000] {
            let members = tar.chunks(len).map(|part| flushed(6, part, 40_000));
            let layer = members.collect::<Vec<_>>().concat();
            check(&layer, 100_000);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 200,
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn damage_is_reported_as_when_inflating_in_order(
            at in any::<prop::sample::Index>(),
            value in any::<u8>(),
            cut in any::<bool>(),
        ) {
            static LAYER: std::sync::LazyLock<Vec<u8>> =
                std::sync::LazyLock::new(|| {
                    let data = [letters(8, 500_000), words(8, 400_000), letters(9, 300_000)];
                    let layer = flushed(6, &tar(&data.concat()), 15_000);
                    let mut ends = Ends::default();
                    count(&mut ends, &layer, 80_000, ROOM);
                    assert!(ends.adopted >= 5 && ends.met_without_markers >= 2, "{ends:?}");
                    layer
                });
            let mut layer = LAYER.clone();
            let at = at.index(layer.len());
            if cut {
                layer.truncate(at);
            } else {
                layer[at] = value;
            }
            check(&layer, 80_000);
        }
    }

    #[test]
    fn a_reader_that_fails_in_the_middle_is_an_error() {
        struct Failing(Vec<u8>);
        impl Read for Failing {
            fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
                if self.0.is_empty() {
                    return Err(std::io::Error::other("the line went dead"));
                }
                let count = buf.len().min(self.0.len());
                buf[..count].copy_from_slice(&self.0[..count]);
                self.0.drain(..count);
                Ok(count)
            }
        }
        let mut layer = gzip(6, &tar(&words(9, 3_000_000)));
        layer.truncate(layer.len() / 2);
        for threads in [0, 2] {
            let built = pipeline(50_000, threads).build(
                Failing(layer.clone()),
                Compression::Gzip,
                options(),
            );
            let error = built.unwrap_err().to_string();
            assert_eq!(error, "cannot read the layer: the line went dead");
        }
    }

    #[test]
    fn a_block_larger_than_the_memory_of_a_piece_is_inflated_in_order() {
        // One block of zeros.
        let layer = gzip(9, &tar(&vec![0; 200_000_000]));
        check(&layer, 20_000);
    }
}
