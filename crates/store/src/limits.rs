//! How much may be stored, and what is known from earlier attempts to keep that.

use std::time::{Duration, Instant};

/// Longest silence about a store above its limit in the log.
const SILENCE: Duration = Duration::from_secs(60);

/// How much may be stored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Number of bytes.
    pub(crate) bytes: Option<u64>,
    /// As a percentage of the size of the file system; 0: no limit.
    pub(crate) percent: u8,
}

/// What is known from earlier searches.
#[derive(Debug, Default)]
pub(crate) struct Reclaiming {
    /// When the last search found nothing.
    pub(crate) vain: Option<Instant>,
    /// When it was logged that the store is above its limit.
    logged: Option<Instant>,
}

impl Reclaiming {
    /// Logs that the store exceeds its limit, not at every repetition.
    pub(crate) fn log_above(&mut self, budget: u64) {
        if self.logged.is_none_or(|logged| logged.elapsed() > SILENCE) {
            self.logged = Some(Instant::now());
            tracing::warn!(
                budget,
                "the layer store exceeds its limit: containers read more in the last minutes than may be stored; layer_store.max_size_bytes and max_size_percent set the limit"
            );
        }
    }
}
