//! The memory in which chunks are inflated before their turn, of all layers that share it.

use super::chunk_permits::{ChunkPermit, ChunkPermits};
use super::cuts::CHUNK_OUTPUT;
use super::pieces::{MAX_THREADS, Pieces, UNPACKED_CHUNK};

/// What a chunk that is inflated ahead takes at most, in bytes: twice the usual size of a chunk, its output,
/// the output's markers, and the places of its blocks.
const EACH: usize = 2 * UNPACKED_CHUNK + CHUNK_OUTPUT + (2 << 20);

/// Most chunks: some more than threads work on.
const MOST: usize = MAX_THREADS + 4;

/// Memory in which layers are inflated ahead of their turn. All layers that share it stay within it together;
/// chunks that find no room are inflated in their turn.
#[derive(Debug)]
pub struct AheadMemory {
    chunks: ChunkPermits,
    pub(super) pieces: Pieces,
}

impl AheadMemory {
    /// Memory of at most so many bytes. With less than one chunk takes, nothing is inflated ahead.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        let chunks = usize::try_from(bytes / EACH as u64).unwrap_or(MOST);
        Self::of_chunks(chunks.min(MOST))
    }

    pub(super) fn of_chunks(most: usize) -> Self {
        Self {
            chunks: ChunkPermits::new(most),
            pieces: Pieces::new(),
        }
    }

    /// Most bytes that it takes: what it was made with, or less if that is more than it can use.
    #[must_use]
    pub fn limit(&self) -> u64 {
        (self.chunks.most() * EACH) as u64
    }

    /// Bytes in use: now, and at most so far. Each chunk counts as the largest.
    #[must_use]
    pub fn usage(&self) -> (u64, u64) {
        let (now, peak) = self.chunks.taken();
        ((now * EACH) as u64, (peak * EACH) as u64)
    }

    /// A permit for a chunk if there is room.
    pub(super) fn permit(&self) -> Option<ChunkPermit> {
        self.chunks.permit()
    }
}
