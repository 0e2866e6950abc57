//! Progress of background filling of one layer, for metrics.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
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

/// What filling of a layer does or waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
#[non_exhaustive]
pub enum FillState {
    /// Everything is stored.
    Complete,
    /// Its spans are being fetched.
    Filling,
    /// Others are filled before it.
    Queued,
    /// Readers need the link: it waits until they are quiet.
    #[default]
    Waiting,
    /// The registry has too many requests: it is left alone for a while.
    Throttled,
    /// The registry, or its spans, cannot be had at present.
    Failing,
    /// The disk has no more room above the reserve, or the layer store is nearly as large as it may
    /// be.
    NoRoom,
    /// It is not filled: by configuration, or because too many layers waited.
    Off,
}

impl FillState {
    /// Ordered as the discriminants, for [`FillState::from_number`].
    const ALL: [Self; 8] = [
        Self::Complete,
        Self::Filling,
        Self::Queued,
        Self::Waiting,
        Self::Throttled,
        Self::Failing,
        Self::NoRoom,
        Self::Off,
    ];

    fn from_number(number: u8) -> Self {
        let state = Self::ALL.get(usize::from(number));
        state.copied().unwrap_or_default()
    }

    /// Returns the stable word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Filling => "filling",
            Self::Queued => "queued",
            Self::Waiting => "waiting",
            Self::Throttled => "throttled",
            Self::Failing => "failing",
            Self::NoRoom => "no-room",
            Self::Off => "off",
        }
    }
}

/// How filling of a layer proceeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    /// What it does or waits for.
    pub state: FillState,
    /// Compressed bytes per second that arrive for the layer, for whatever reason.
    pub bytes_per_second: u64,
}

/// Counters and times of filling one layer.
#[derive(Debug)]
pub(crate) struct FillProgress {
    state: AtomicU8,
    /// Compressed bytes per second.
    rate: AtomicU64,
    spans: AtomicU64,
    failures: AtomicU64,
    times: Mutex<Times>,
}

#[derive(Debug, Default)]
struct Times {
    began: Option<Instant>,
    took: Option<Duration>,
}

impl Default for FillProgress {
    fn default() -> Self {
        Self {
            state: AtomicU8::new(FillState::Off as u8),
            rate: AtomicU64::new(0),
            spans: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            times: Mutex::default(),
        }
    }
}

impl FillProgress {
    /// Records what filling the layer does or waits for.
    pub(crate) fn set_state(&self, state: FillState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    pub(crate) fn state(&self) -> FillState {
        FillState::from_number(self.state.load(Ordering::Relaxed))
    }

    /// Records the rate at which the layer arrives, in bytes per second.
    pub(crate) fn set_rate(&self, rate: u64) {
        self.rate.store(rate, Ordering::Relaxed);
    }

    pub(crate) fn rate(&self) -> u64 {
        self.rate.load(Ordering::Relaxed)
    }

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
    fn a_state_is_the_one_that_was_set() {
        let progress = FillProgress::default();
        assert_eq!(progress.state(), FillState::Off);
        for state in FillState::ALL {
            progress.set_state(state);
            assert_eq!(progress.state(), state);
        }
    }

    #[test]
    fn the_time_from_first_batch_to_last_span_is_logged_once() {
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
