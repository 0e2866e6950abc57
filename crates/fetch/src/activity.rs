//! When the fetcher was last in use: by readers and by the layer store.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Time after a failure of the store during which nothing is fetched ahead of readers.
const STORE_PAUSE: Duration = Duration::from_secs(10);

/// Times of the last events, in milliseconds since the start of the fetcher.
#[derive(Debug)]
pub(crate) struct Activity {
    started: Instant,
    silence_period: Duration,
    /// The last mount, or read that needed the network.
    last_use: AtomicU64,
    /// End of the pause after a failure of the store.
    store_pause: AtomicU64,
}

impl Activity {
    /// `silence_period`: time without use after which background work is allowed.
    pub(crate) fn new(silence_period: Duration) -> Self {
        Self {
            started: Instant::now(),
            silence_period,
            last_use: AtomicU64::new(0),
            store_pause: AtomicU64::new(0),
        }
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Records a mount, or a read that needs the network.
    pub(crate) fn note_use(&self) {
        self.last_use.store(self.millis(), Ordering::Relaxed);
    }

    /// Whether there has been no use for long enough to allow background work.
    pub(crate) fn is_quiet(&self) -> bool {
        let last_use = self.last_use.load(Ordering::Relaxed);
        let quiet = self.millis().saturating_sub(last_use);
        u128::from(quiet) >= self.silence_period.as_millis()
    }

    /// Records that the store could not take a span.
    pub(crate) fn note_store_failure(&self) {
        let pause = u64::try_from(STORE_PAUSE.as_millis()).unwrap_or(u64::MAX);
        let until = self.millis().saturating_add(pause);
        self.store_pause.store(until, Ordering::Relaxed);
    }

    /// Whether the store is expected to take spans that no reader waits for.
    pub(crate) fn store_accepts(&self) -> bool {
        self.millis() >= self.store_pause.load(Ordering::Relaxed)
    }
}
