//! How many chunks are there before their turn, of all layers that share the memory for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::chunks::Pool;

/// The permits of all layers.
#[derive(Debug)]
pub(super) struct ChunkPermits(Arc<State>);

#[derive(Debug)]
struct State {
    most: usize,
    chunks: AtomicUsize,
    peak: AtomicUsize,
    /// Memory of earlier chunks, for reuse.
    free: Arc<Pool<Vec<u8>>>,
}

/// Counts one chunk that is read before its turn, for as long as it exists.
#[derive(Debug)]
pub(super) struct ChunkPermit(Arc<State>);

impl ChunkPermits {
    pub(super) fn new(most: usize) -> Self {
        Self(Arc::new(State {
            most,
            chunks: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            free: Arc::new(Pool::new(most)),
        }))
    }

    /// Most permits.
    pub(super) fn most(&self) -> usize {
        self.0.most
    }

    /// Permits that are taken: now, and at most so far.
    pub(super) fn taken(&self) -> (usize, usize) {
        let count = |chunks: &AtomicUsize| chunks.load(Ordering::Relaxed);
        (count(&self.0.chunks), count(&self.0.peak))
    }

    /// A permit if any is left.
    pub(super) fn permit(&self) -> Option<ChunkPermit> {
        let state = &self.0;
        let more = |count| (count < state.most).then_some(count + 1);
        let before = state
            .chunks
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .ok()?;
        state.peak.fetch_max(before + 1, Ordering::Relaxed);
        Some(ChunkPermit(Arc::clone(state)))
    }
}

impl ChunkPermit {
    /// Where the memory of such chunks comes from.
    pub(super) fn pool(&self) -> Arc<Pool<Vec<u8>>> {
        Arc::clone(&self.0.free)
    }
}

impl Drop for ChunkPermit {
    fn drop(&mut self) {
        // Memory is kept from one chunk to the next, not from one pull to the next.
        if self.0.chunks.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.free.clear();
        }
    }
}
