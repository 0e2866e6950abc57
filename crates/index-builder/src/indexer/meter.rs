//! The bytes of layers that were read for one image.

use std::sync::atomic::{AtomicU64, Ordering};

use soci_index::{LayerOutcome, Progress, Step};
use soci_oci::{Descriptor, Digest};

#[derive(Debug, Default)]
pub(super) struct BytesRead(AtomicU64);

impl BytesRead {
    pub(super) fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Progress for BytesRead {
    fn begin(&self, _: &Descriptor, _: Step) {}

    fn advance(&self, _: Digest, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    fn layer(&self, layer: &Descriptor, outcome: &LayerOutcome) {
        tracing::debug!(layer = %layer.digest, "{}", outcome.line(layer));
    }

    fn prefetch(&self, _: Digest, _: Digest) {}

    fn warn(&self, message: &str) {
        tracing::warn!("{message}");
    }
}
