//! What the fetcher has done and is doing, for metrics and tests.

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
