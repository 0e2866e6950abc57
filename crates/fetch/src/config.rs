//! How the span fetcher behaves.

use std::time::Duration;

/// How the span fetcher behaves. [`Default`] is what an empty configuration file gives.
#[derive(Debug, Clone)]
pub struct FetchConfig {
    /// How many bytes of compressed and inflated data may be in memory at once. A span that is larger
    /// alone is handled alone.
    pub memory_budget: u64,
    /// The most requests in flight; fewer when more bring nothing. At least 2. Demand may use two more.
    pub max_inflight: usize,
    /// The largest readahead window of a sequential reader, in compressed bytes; 0: no readahead.
    pub max_readahead: u64,
    /// The most compressed bytes of one ranged request.
    pub max_request_bytes: u64,
    /// How often a span whose bytes do not match is fetched again before readers get an error; at least
    /// once whatever is set here.
    pub max_span_verification_retries: u32,
    /// A response that brings nothing for this long counts as broken.
    pub stall_timeout: Duration,
    /// For how long a span that failed is not tried again.
    pub negative_backoff: Duration,
    /// Threads that check and inflate; `None`: as many as there are processors.
    pub inflate_threads: Option<usize>,
    /// Filling layers while nobody reads.
    pub background: BackgroundConfig,
}

/// Filling layers while nobody reads: `[background_fetch]`.
#[derive(Debug, Clone)]
pub struct BackgroundConfig {
    /// Do not.
    pub disable: bool,
    /// How long there must have been no mount and no read that needed the network.
    pub silence_period: Duration,
    /// The time from one batch to the next.
    pub fetch_period: Duration,
    /// The most layers in the queue; `None`: no limit.
    pub max_queue_size: Option<usize>,
    /// What goes when the queue is full.
    pub drop_policy: DropPolicy,
}

/// What goes when the background queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DropPolicy {
    /// The layer that wants in.
    #[default]
    Newest,
    /// The layer that waits longest.
    Oldest,
}

impl Default for FetchConfig {
    fn default() -> Self {
        Self {
            memory_budget: 64 << 20,
            max_inflight: 16,
            max_readahead: 32 << 20,
            max_request_bytes: 32 << 20,
            max_span_verification_retries: 1,
            stall_timeout: Duration::from_secs(60),
            negative_backoff: Duration::from_millis(500),
            inflate_threads: None,
            background: BackgroundConfig::default(),
        }
    }
}

impl Default for BackgroundConfig {
    fn default() -> Self {
        Self {
            disable: false,
            silence_period: Duration::from_secs(30),
            fetch_period: Duration::from_millis(500),
            max_queue_size: Some(300),
            drop_policy: DropPolicy::Newest,
        }
    }
}
