//! Counters of the fetcher, for metrics and tests.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::priority::{PerPriority, Priority};

/// A snapshot of the fetcher's counters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Work for spans that readers wait for.
    pub demand: PriorityStats,
    /// Work for spans ahead of sequential readers.
    pub readahead: PriorityStats,
    /// Work for spans of a recorded start-up profile.
    pub profile: PriorityStats,
    /// Work for spans that are filled in the background.
    pub background: PriorityStats,
    /// Number of spans whose bytes matched their digest.
    pub spans_verified: u64,
    /// Number of times that a span's bytes did not match.
    pub verification_failures: u64,
    /// Number of spans that could not be fetched in spite of all retries.
    pub spans_failed: u64,
    /// Number of spans that were served but could not be stored.
    pub store_failures: u64,
    /// Number of spans that wait to be requested.
    pub queued_spans: u64,
    /// Number of requests in flight.
    pub requests_in_flight: u64,
    /// Lowest current limit on requests in flight to one origin.
    pub request_limit: u64,
    /// Number of origins that layers are fetched from.
    pub origins: u64,
    /// Number of origins that failed in a row, whose readers get errors immediately.
    pub origins_failing: u64,
    /// Memory in use, in bytes of the memory budget.
    pub memory_in_use: u64,
    /// Largest memory in use so far, in bytes.
    pub memory_peak: u64,
    /// Number of layers that wait to be filled in the background.
    pub background_layers: u64,
    /// Number of layers that a full background queue dropped.
    pub background_dropped: u64,
}

/// Work at one priority.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PriorityStats {
    /// Number of ranged requests made.
    pub requests: u64,
    /// Number of compressed bytes received.
    pub bytes: u64,
    /// Number of spans fetched, verified and inflated.
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

    /// Returns the counters together with the current load.
    pub(crate) fn snapshot(&self, load: &Load) -> Stats {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let of = |priority| {
            let counters = self.of(priority);
            PriorityStats {
                requests: value(&counters.requests),
                bytes: value(&counters.bytes),
                spans: value(&counters.spans),
            }
        };
        Stats {
            demand: of(Priority::Demand),
            readahead: of(Priority::Readahead),
            profile: of(Priority::Profile),
            background: of(Priority::Background),
            spans_verified: value(&self.spans_verified),
            verification_failures: value(&self.verification_failures),
            spans_failed: value(&self.spans_failed),
            store_failures: value(&self.store_failures),
            queued_spans: load.queued_spans as u64,
            requests_in_flight: load.requests as u64,
            request_limit: load.request_limit as u64,
            origins: load.origins.0 as u64,
            origins_failing: load.origins.1 as u64,
            memory_in_use: load.memory.0,
            memory_peak: load.memory.1,
            background_layers: load.background.0 as u64,
            background_dropped: load.background.1,
        }
    }
}

/// The current load of a fetcher.
pub(crate) struct Load {
    pub(crate) queued_spans: usize,
    pub(crate) requests: usize,
    pub(crate) request_limit: usize,
    /// Number of origins, and of failing ones.
    pub(crate) origins: (usize, usize),
    /// Bytes in use, and the most so far.
    pub(crate) memory: (u64, u64),
    /// Number of waiting layers, and of dropped ones.
    pub(crate) background: (usize, u64),
}
