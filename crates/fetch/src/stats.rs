//! What the fetcher has done and is doing, for metrics and tests.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::core::Core;
use crate::priority::{PerPriority, Priority};

/// A snapshot of the fetcher's counters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Spans that readers wait for.
    pub demand: PriorityStats,
    /// Spans ahead of sequential readers.
    pub readahead: PriorityStats,
    /// Spans of a recorded start-up profile.
    pub profile: PriorityStats,
    /// Spans fetched while nobody reads.
    pub background: PriorityStats,
    /// Spans whose bytes matched their digest.
    pub spans_verified: u64,
    /// Times that a span's bytes did not match.
    pub verification_failures: u64,
    /// Spans that could not be fetched in spite of all retries.
    pub spans_failed: u64,
    /// Spans that were served but could not be stored.
    pub store_failures: u64,
    /// Spans that wait to be requested.
    pub queued_spans: u64,
    /// Requests in flight.
    pub requests_in_flight: u64,
    /// How many requests may be in flight at present.
    pub request_limit: u64,
    /// Bytes of the memory budget in use.
    pub memory_in_use: u64,
    /// The most that were in use.
    pub memory_peak: u64,
    /// Layers that wait for the background fetcher.
    pub background_layers: u64,
    /// Layers that the background queue had no room for.
    pub background_dropped: u64,
}

/// What was done at one priority.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PriorityStats {
    /// Ranged requests made.
    pub requests: u64,
    /// Compressed bytes received.
    pub bytes: u64,
    /// Spans fetched, verified and inflated.
    pub spans: u64,
}

/// The counters behind [`Stats`].
#[derive(Debug, Default)]
pub(crate) struct Counters {
    by_priority: PerPriority<PriorityCounters>,
    pub(crate) spans_verified: AtomicU64,
    pub(crate) verification_failures: AtomicU64,
    pub(crate) spans_failed: AtomicU64,
    pub(crate) store_failures: AtomicU64,
}

/// The counters behind [`PriorityStats`].
#[derive(Debug, Default)]
pub(crate) struct PriorityCounters {
    pub(crate) requests: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) spans: AtomicU64,
}

impl Counters {
    pub(crate) const fn of(&self, priority: Priority) -> &PriorityCounters {
        self.by_priority.get(priority)
    }
}

impl Core {
    pub(crate) fn stats(&self) -> Stats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        let of = |priority| {
            let counters = counters.of(priority);
            PriorityStats {
                requests: load(&counters.requests),
                bytes: load(&counters.bytes),
                spans: load(&counters.spans),
            }
        };
        let ((queued, in_flight), limit) = {
            let schedule = self.schedule.lock();
            (schedule.load(), schedule.limit.get())
        };
        let (memory_in_use, memory_peak) = self.budget.usage();
        let (background_layers, background_dropped) = self.background.load();
        Stats {
            demand: of(Priority::Demand),
            readahead: of(Priority::Readahead),
            profile: of(Priority::Profile),
            background: of(Priority::Background),
            spans_verified: load(&counters.spans_verified),
            verification_failures: load(&counters.verification_failures),
            spans_failed: load(&counters.spans_failed),
            store_failures: load(&counters.store_failures),
            queued_spans: queued as u64,
            requests_in_flight: in_flight as u64,
            request_limit: limit as u64,
            memory_in_use,
            memory_peak,
            background_layers: background_layers as u64,
            background_dropped,
        }
    }
}
