//! Building a zTOC on several threads: one reads, some inflate ahead, one puts all together in order,
//! two hash.

use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::build::{Assembly, BuildOptions, Builder, Built};
use crate::chunks::{Chunk, ChunkReader, Chunks, Pool};
use crate::hashing::HashThreads;
use crate::speculate::{Buffers, Piece, Speculator};
use crate::{BuildError, Compression};

/// How much of a layer is inflated at a time, in compressed bytes. Smaller ones take less memory;
/// larger ones have fewer markers in proportion.
const CHUNK: usize = 3 << 20;

/// What one chunk's output may take in memory, in chunks.
const MEMORY: usize = 4;

/// With more threads than this, putting together is what takes the time.
const MAX_THREADS: usize = 8;

/// What all layers that are indexed at the same time have inflated ahead. Together they keep no more
/// than one layer would; chunks beyond that are inflated in their turn, which keeps the cores busy,
/// too.
static PIECES: Pieces = Pieces(AtomicUsize::new(0));

/// How many pieces there are.
#[derive(Debug)]
struct Pieces(AtomicUsize);

/// That a piece may be there.
#[derive(Debug)]
struct Permit<'a>(&'a Pieces);

/// A piece, which takes memory until it is dropped.
type Permitted<'a> = (Piece, Permit<'a>);

impl Pieces {
    /// A permit if there are fewer than `max`.
    fn permit(&self, max: usize) -> Option<Permit<'_>> {
        let more = |count| (count < max).then_some(count + 1);
        let counted = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        counted.ok().map(|_| Permit(self))
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How to share the work.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pipeline<'a> {
    /// The size of a chunk in bytes.
    chunk: usize,
    /// How many threads inflate ahead.
    threads: usize,
    pieces: &'a Pieces,
}

impl<'a> Pipeline<'a> {
    pub(crate) fn of_cores(cores: usize) -> Self {
        Self {
            chunk: CHUNK,
            // On one core, what is inflated ahead only costs more.
            threads: if cores == 1 {
                0
            } else {
                cores.min(MAX_THREADS)
            },
            pieces: &PIECES,
        }
    }

    /// With small chunks, for tests of what is between them.
    pub(crate) const fn with_chunks_of(chunk: usize) -> Self {
        Self {
            chunk,
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
        let chunks = Chunks::new(ahead, threads > 0);
        let pool = Pool::new(threads + 1);
        std::thread::scope(|scope| {
            let _guard = Guard(&chunks);
            let start = |name: &str| std::thread::Builder::new().name(name.to_owned());
            let assembling = start("ztoc-assemble").spawn_scoped(scope, || {
                let _guard = Guard(&chunks);
                let built = assemble(assembly, &chunks, &pool);
                // Nobody needs to go on after a failure.
                chunks.stop();
                built
            })?;
            for _ in 0..threads {
                let inflating = start("ztoc-inflate").spawn_scoped(scope, || {
                    let _guard = Guard(&chunks);
                    self.inflate_ahead(&chunks, &pool, ahead);
                });
                if let Err(error) = inflating {
                    chunks.stop();
                    return Err(error.into());
                }
            }
            let failure = feed(first, &mut reader, &chunks).err();
            let built = assembling.join();
            match (failure, built) {
                (Some(error), _) => Err(error.into()),
                (None, Ok(built)) => built,
                (None, Err(panic)) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Inflates chunks before it is their turn, as long as there are fewer than `max` pieces.
    fn inflate_ahead(self, chunks: &Chunks<Permitted<'a>>, pool: &Pool<Buffers>, max: usize) {
        let mut speculator = Speculator::new(MEMORY * self.chunk);
        while let Some((number, chunk, next)) = chunks.todo() {
            let piece = speculator.as_mut().and_then(|speculator| {
                let permit = self.pieces.permit(max)?;
                let next = next.as_ref().map_or(&[][..], |next| next.data());
                let piece = speculator
                    .inflate(chunk.offset(), chunk.data(), next, pool.take())
                    .map_err(|buffers| pool.give_back(buffers))
                    .ok()?;
                Some((piece, permit))
            });
            chunks.done(number, piece);
        }
    }
}

/// Ends the others' waiting when its thread panics.
struct Guard<'c, P>(&'c Chunks<P>);

impl<P> Drop for Guard<'_, P> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop();
        }
    }
}

/// Reads all chunks that somebody wants.
fn feed<P>(
    first: Chunk,
    reader: &mut ChunkReader<impl Read>,
    chunks: &Chunks<P>,
) -> std::io::Result<()> {
    chunks.push(first);
    while chunks.wait_for_room() {
        match reader.read() {
            Ok(Some(chunk)) => chunks.push(chunk),
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

/// Puts chunks together in order.
fn assemble(
    mut assembly: Assembly,
    chunks: &Chunks<Permitted<'_>>,
    pool: &Pool<Buffers>,
) -> Result<Built, BuildError> {
    let hashing = HashThreads::start()?;
    while let Some((chunk, piece)) = chunks.next() {
        assembly.take(&chunk, piece.as_ref().map(|(piece, _)| piece))?;
        if let Some((piece, _permit)) = piece {
            pool.give_back(piece.into_buffers());
        }
        let checkpoints = assembly.checkpoints_up_to(chunk.end());
        hashing.update(chunk, checkpoints)?;
    }
    assembly.finish(hashing.finish()?)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    /// Pseudo-random bytes.
    fn noise(seed: u64, len: usize) -> Vec<u8> {
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
    fn words(seed: u64, len: usize) -> Vec<u8> {
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

    /// A tar of one file.
    fn tar(content: &[u8]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, "file", content).unwrap();
        builder.into_inner().unwrap()
    }

    fn gzip(level: u32, data: &[u8]) -> Vec<u8> {
        let level = flate2::Compression::new(level);
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
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

    /// Has no others beside it.
    fn pipeline(chunk: usize, threads: usize) -> Pipeline<'static> {
        Pipeline {
            chunk,
            threads,
            pieces: Box::leak(Box::new(Pieces(AtomicUsize::new(0)))),
        }
    }

    /// Both ways of building agree.
    fn check(layer: &[u8], chunk: usize) {
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

    /// How many chunks were inflated ahead and were of use, and how many there are.
    fn useful(layer: &[u8], chunk: usize) -> (usize, usize) {
        let mut speculator = Speculator::new(MEMORY * chunk).unwrap();
        let mut assembly = Assembly::new(Compression::Gzip, options()).unwrap();
        let mut reader = ChunkReader::new(layer, chunk, 3);
        let mut chunks = Vec::new();
        while let Some(chunk) = reader.read().unwrap() {
            chunks.push(chunk);
        }
        let mut useful = 0;
        for (at, chunk) in chunks.iter().enumerate() {
            let next = chunks.get(at + 1).map_or(&[][..], Chunk::data);
            let piece = speculator
                .inflate(chunk.offset(), chunk.data(), next, Buffers::default())
                .ok()
                .filter(|_| at > 0);
            useful += usize::from(assembly.take(chunk, piece.as_ref()).unwrap());
        }
        (useful, chunks.len())
    }

    #[test]
    fn layers_inflated_ahead_give_the_same_ztoc() {
        let mixed = [
            words(1, 2_000_000),
            noise(2, 700_000),
            vec![0; 3_000_000],
            words(3, 1_000_000),
        ]
        .concat();
        for (what, data) in [
            ("words", words(4, 4_000_000)),
            ("zeros", vec![0; 40_000_000]),
            ("noise", noise(5, 1_000_000)),
            ("mixed", mixed),
        ] {
            let tar = tar(&data);
            for level in [0, 1, 6, 9] {
                let layer = gzip(level, &tar);
                println!("{what}, level {level}: {} bytes", layer.len());
                for chunk in [40_000, 131_072, 1_000_003] {
                    check(&layer, chunk);
                }
            }
        }
    }

    #[test]
    fn most_chunks_that_are_inflated_ahead_are_of_use() {
        let layer = gzip(6, &tar(&words(6, 8_000_000)));
        let (useful, chunks) = useful(&layer, 200_000);
        assert!(chunks > 10);
        assert!(useful > chunks * 8 / 10, "{useful} of {chunks}");
    }

    #[test]
    fn members_may_end_anywhere() {
        let tar = tar(&words(7, 3_000_000));
        for len in [100, 10_000, 32_769, 1_000_000] {
            let members = tar.chunks(len).map(|part| gzip(6, part));
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
        fn damage_is_told_of_as_when_inflating_in_order(
            at in any::<prop::sample::Index>(),
            value in any::<u8>(),
            cut in any::<bool>(),
        ) {
            static LAYER: std::sync::LazyLock<Vec<u8>> =
                std::sync::LazyLock::new(|| gzip(6, &tar(&words(8, 600_000))));
            let mut layer = LAYER.clone();
            let at = at.index(layer.len());
            if cut {
                layer.truncate(at);
            } else {
                layer[at] = value;
            }
            check(&layer, 30_000);
        }
    }

    #[test]
    fn a_reader_that_fails_in_the_middle_is_told_of() {
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
    fn nothing_that_is_read_is_taken_for_the_end_of_memory() {
        // One block of zeros is longer than a chunk's output may be.
        let layer = gzip(9, &tar(&vec![0; 200_000_000]));
        check(&layer, 20_000);
    }
}
