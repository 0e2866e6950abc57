//! Progress of background filling of one layer, for metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Number of spans of one layer that background filling handled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BackgroundCounts {
    /// Spans fetched, verified and inflated.
    pub spans: u64,
    /// Fetches that failed.
    pub failures: u64,
}

/// Counters and times of filling one layer.
#[derive(Debug, Default)]
pub(crate) struct FillProgress {
    spans: AtomicU64,
    failures: AtomicU64,
    times: Mutex<Times>,
}

#[derive(Debug, Default)]
struct Times {
    began: Option<Instant>,
    took: Option<Duration>,
}

impl FillProgress {
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

    /// Records the start of a batch.
    pub(crate) fn begin(&self) {
        self.times.lock().began.get_or_insert_with(Instant::now);
    }

    /// Records that the layer is complete.
    pub(crate) fn end(&self) {
        let mut times = self.times.lock();
        times.took = times.began.take().map(|began| began.elapsed());
    }

    /// Returns the time that filling took, once, after its end.
    pub(crate) fn take_time(&self) -> Option<Duration> {
        self.times.lock().took.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_from_first_batch_to_last_span_is_told_once() {
        let progress = FillProgress::default();
        progress.end();
        assert_eq!(progress.take_time(), None, "readers fetched it all");
        progress.begin();
        progress.begin();
        assert_eq!(progress.take_time(), None);
        progress.end();
        assert!(progress.take_time().is_some());
        assert_eq!(progress.take_time(), None);
    }
}
