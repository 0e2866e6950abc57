//! The threads that inflate a layer without building a zTOC: one reads, some inflate ahead, and the
//! caller's puts together in order.

use std::io::Read;

use super::chunks::{Chunk, ChunkReader, Chunks};
use super::pipeline::{Guard, Permitted, Pipeline, feed};
use crate::BuildError;
use crate::gzip_scan::{GzipScanner, Sink};

impl Pipeline<'_> {
    /// Inflates a gzip layer into `sink`. `ahead` returns for each chunk whether it is inflated ahead.
    pub(crate) fn inflate(
        self,
        reader: impl Read + Send,
        ahead: &(dyn Fn() -> bool + Sync),
        mut sink: impl Sink,
    ) -> Result<(), BuildError> {
        let most = self.threads + 2;
        let mut reader = ChunkReader::new(reader, self.chunk, most + 1);
        let mut scanner = GzipScanner::without_checkpoints()?;
        let first = match reader.read()? {
            Some(first) if first.data().len() == self.chunk => first,
            small => {
                let small = small.as_ref().map_or(&[][..], Chunk::data);
                scanner.write(small, u64::MAX, &mut sink)?;
                return scanner.finish().map(drop);
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
                    self.inflate_ahead(&chunks, most);
                });
                // With fewer of them it takes longer.
                inflating += usize::from(started.is_ok());
            }
            let (queue, reader, any) = (&chunks, &mut reader, inflating > 0);
            let reading = start("gzip-read").spawn_scoped(scope, move || {
                let _guard = Guard(queue);
                feed(first, reader, queue, &|| any && ahead())
            })?;
            let assembled = self.assemble(&mut scanner, &chunks, &mut sink);
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
        scanner.finish().map(drop)
    }

    fn assemble(
        &self,
        scanner: &mut GzipScanner,
        chunks: &Chunks<Permitted<'_>>,
        sink: &mut impl Sink,
    ) -> Result<(), BuildError> {
        while let Some((chunk, piece)) = chunks.next() {
            if let Some((piece, permit)) = piece {
                scanner.write(rest_of(&chunk, scanner), piece.start, &mut *sink)?;
                // If it begins elsewhere, what was taken for a block was none.
                scanner.adopt(&piece, &mut *sink)?;
                self.pieces.pool.give_back(piece.into_buffers());
                drop(permit);
            }
            scanner.write(rest_of(&chunk, scanner), u64::MAX, &mut *sink)?;
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
