//! How many pieces there are, of all layers that share them.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::chunks::Pool;
use super::speculate::{Buffers, Piece};

/// With more threads than this, putting together is what takes the time.
pub(super) const MAX_THREADS: usize = 8;

/// The size of a chunk of a layer that is unpacked. They are smaller, because more layers are unpacked at a
/// time.
pub(super) const UNPACKED_CHUNK: usize = 1 << 20;

/// The number of pieces that exist, and the memory of earlier ones.
#[derive(Debug)]
pub(super) struct Pieces {
    count: AtomicUsize,
    pub(super) pool: Pool<Buffers>,
}

/// Counts one piece for as long as it exists.
#[derive(Debug)]
pub(super) struct Permit<'a>(&'a Pieces);

/// A piece, which takes memory until it is dropped.
pub(super) type Permitted<'a> = (Piece, Permit<'a>);

impl Pieces {
    pub(super) const fn new() -> Self {
        Self {
            count: AtomicUsize::new(0),
            pool: Pool::new(MAX_THREADS),
        }
    }

    /// A permit if there are fewer than `max`.
    pub(super) fn permit(&self, max: usize) -> Option<Permit<'_>> {
        let more = |count| (count < max).then_some(count + 1);
        let counted = self
            .count
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        counted.ok().map(|_| Permit(self))
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        // Memory is kept from one piece to the next, not from one layer to the next.
        if self.0.count.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.pool.clear();
        }
    }
}
