//! Configuration of the span fetcher.

use std::time::Duration;

/// Configuration of the span fetcher. [`Default`] is that of an empty configuration file.
#[derive(Debug, Clone)]
pub struct FetchConfig {
    /// Limit of compressed and inflated data in memory, in bytes. A larger span is handled alone.
    pub memory_budget: u64,
    /// Largest number of requests in flight, at least 2; fewer when more do not raise the
    /// throughput. Demand may use two more.
    pub max_inflight: usize,
    /// Largest readahead window of a sequential reader, in compressed bytes; 0 disables readahead.
    pub max_readahead: u64,
    /// Largest number of compressed bytes of one ranged request.
    pub max_request_bytes: u64,
    /// How often a span that fails verification is fetched again before its readers get an error;
    /// at least once, whatever is set here.
    pub max_span_verification_retries: u32,
    /// Longest time for which a read waits for a registry that delivers nothing, all retries of the
    /// registry client included. The read then fails. Each byte that arrives restarts it.
    pub read_timeout: Duration,
    /// Time for which reads of a span that failed get its error, without another request.
    pub negative_backoff: Duration,
    /// Number of threads that verify and inflate; `None`: one per processor.
    pub inflate_threads: Option<usize>,
    /// Background filling.
    pub background: BackgroundConfig,
}

/// Configuration of background filling: `[background_fetch]`.
#[derive(Debug, Clone)]
pub struct BackgroundConfig {
    /// Turns background filling off.
    pub disable: bool,
    /// Time without a mount and without a read from the network after which filling starts; `None`:
    /// a second and a half, and a request at a time between readers that never rest.
    pub silence_period: Option<Duration>,
    /// Time from one batch to the next; `None`: no pause, as fast as link, processors and disk allow.
    pub fetch_period: Option<Duration>,
    /// Largest number of layers in the queue; `None`: no limit.
    pub max_queue_size: Option<usize>,
    /// Which layer leaves a full queue.
    pub drop_policy: DropPolicy,
}

/// Which layer leaves a full background queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DropPolicy {
    /// The layer that is added.
    #[default]
    Newest,
    /// The layer that has waited longest.
    Oldest,
}

impl FetchConfig {
    /// Default of [`FetchConfig::read_timeout`]: time to EIO while a registry delivers nothing.
    pub const READ_TIMEOUT: Duration = Duration::from_secs(60);
}

impl Default for FetchConfig {
    fn default() -> Self {
        Self {
            memory_budget: 64 << 20,
            max_inflight: 16,
            max_readahead: 32 << 20,
            max_request_bytes: 32 << 20,
            max_span_verification_retries: 1,
            read_timeout: Self::READ_TIMEOUT,
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
            silence_period: None,
            fetch_period: None,
            max_queue_size: Some(300),
            drop_policy: DropPolicy::Newest,
        }
    }
}
