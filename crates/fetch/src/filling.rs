//! What the background fetcher did for one layer, for metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Spans of one layer that were fetched while nobody asked for them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BackgroundCounts {
    /// Fetched, verified and inflated.
    pub spans: u64,
    /// Could not be fetched.
    pub failures: u64,
}

/// The background fetcher's work on one layer.
#[derive(Debug, Default)]
pub(crate) struct Filling {
    spans: AtomicU64,
    failures: AtomicU64,
    times: Mutex<Times>,
}

#[derive(Debug, Default)]
struct Times {
    began: Option<Instant>,
    took: Option<Duration>,
}

impl Filling {
    pub(crate) fn fetched(&self) {
        self.spans.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn counts(&self) -> BackgroundCounts {
        BackgroundCounts {
            spans: self.spans.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
        }
    }

    /// A batch begins.
    pub(crate) fn begin(&self) {
        self.times.lock().began.get_or_insert_with(Instant::now);
    }

    /// The layer is complete.
    pub(crate) fn end(&self) {
        let mut times = self.times.lock();
        times.took = times.began.take().map(|began| began.elapsed());
    }

    /// How long filling the layer took, once it is over; told once.
    pub(crate) fn take_time(&self) -> Option<Duration> {
        self.times.lock().took.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_from_first_batch_to_last_span_is_told_once() {
        let filling = Filling::default();
        filling.end();
        assert_eq!(filling.take_time(), None, "readers fetched it all");
        filling.begin();
        filling.begin();
        assert_eq!(filling.take_time(), None);
        filling.end();
        assert!(filling.take_time().is_some());
        assert_eq!(filling.take_time(), None);
    }
}
