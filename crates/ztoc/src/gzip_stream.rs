//! A gzip layer that is inflated only, without a zTOC: on the caller's thread, or with the help of
//! threads that inflate ahead.

use std::io::Read;

use crate::gzip_scan::GzipScanner;
use crate::parallel::Pipeline;
use crate::{AheadMemory, BuildError, EntryPoints};

/// How much is taken in at a time: so that a caller that stops is noticed soon.
const STEP: usize = 256 << 10;

/// A gzip stream of any number of members, which arrives in pieces. All checksums are verified.
#[derive(Debug)]
pub struct GzipStream(GzipScanner);

impl GzipStream {
    /// A stream that has seen nothing.
    ///
    /// # Errors
    /// No memory.
    pub fn new() -> Result<Self, BuildError> {
        GzipScanner::without_checkpoints().map(Self)
    }

    /// Takes in the next bytes and hands the output to `sink`.
    ///
    /// # Errors
    /// [`BuildError`] when the stream is damaged, and what `sink` reports. It is of no use then.
    pub fn write(
        &mut self,
        compressed: &[u8],
        mut sink: impl FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<(), BuildError> {
        for step in compressed.chunks(STEP) {
            self.0.write(step, u64::MAX, |output| Ok(sink(output)?))?;
        }
        Ok(())
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// [`BuildError::Truncated`] if it was not at an end.
    pub fn finish(self) -> Result<(), BuildError> {
        self.0.finish().map(drop)
    }
}

/// How a layer was inflated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InflatedAhead {
    /// Number of its chunks.
    pub chunks: u64,
    /// Number of those of which something was inflated ahead from a checkpoint.
    pub from_checkpoints: u64,
    /// Number of those of which something was inflated ahead from a block that was found.
    pub guessed: u64,
}

/// Inflates all that `reader` has, in order, into `sink`, which is called on this thread. Up to
/// `threads` others inflate ahead, those chunks for which `memory` has room and `ahead` says so when they are
/// read: from the layer's checkpoints if it has `entries`, and otherwise from a block that they find.
///
/// # Errors
/// As [`GzipStream::write`] and [`GzipStream::finish`], and what the reader reports.
pub fn inflate_ahead(
    reader: impl Read + Send,
    threads: usize,
    memory: &AheadMemory,
    entries: Option<&EntryPoints>,
    ahead: &(dyn Fn() -> bool + Sync),
    mut sink: impl FnMut(&[u8]) -> std::io::Result<()>,
) -> Result<InflatedAhead, BuildError> {
    Pipeline::for_unpacking(threads, memory)
        .inflate(reader, memory, entries, ahead, |output| Ok(sink(output)?))
}
