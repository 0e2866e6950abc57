//! How many chunks wait to be inflated ahead, of all layers that are unpacked at the same time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// The permits of all layers.
#[derive(Debug)]
pub(super) struct ChunkPermits {
    taken: OnceLock<Arc<AtomicUsize>>,
    most: usize,
}

/// That a chunk may wait.
#[derive(Debug)]
pub(super) struct ChunkPermit(Arc<AtomicUsize>);

impl ChunkPermits {
    pub(super) const fn new(most: usize) -> Self {
        Self {
            taken: OnceLock::new(),
            most,
        }
    }

    /// A permit if any is left.
    pub(super) fn permit(&self) -> Option<ChunkPermit> {
        let taken = self.taken.get_or_init(Arc::default);
        let more = |count| (count < self.most).then_some(count + 1);
        let counted = taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        counted.ok().map(|_| ChunkPermit(Arc::clone(taken)))
    }

    #[cfg(test)]
    pub(super) fn taken(&self) -> usize {
        self.taken
            .get()
            .map_or(0, |taken| taken.load(Ordering::Relaxed))
    }
}

impl Drop for ChunkPermit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
