//! When the download of a whole blob is given up.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::{Deadline, RegistryError};

/// When a download is given up: the client may do better, and others wait for the slot.
#[derive(Debug, Clone, Copy)]
pub struct DownloadLimits {
    /// When the first bytes must have come, in spite of retries and of the server's `Retry-After`.
    pub first_byte: Deadline,
    /// Fewest bytes in each `period` after that. The last piece may be smaller.
    pub floor: u64,
    /// The time in which so many bytes must come.
    pub period: Duration,
}

impl DownloadLimits {
    /// Drives a download, whose bytes `arrived` counts, until it is too slow.
    pub(crate) async fn watch<T>(
        &self,
        what: impl Fn() -> String,
        arrived: &AtomicU64,
        download: impl Future<Output = Result<T, RegistryError>>,
    ) -> Result<T, RegistryError> {
        let mut download = std::pin::pin!(download);
        let (began, mut seen) = (Instant::now(), 0);
        loop {
            let started = seen > 0;
            let wait = if started {
                self.period
            } else {
                self.period.min(self.first_byte.remaining())
            };
            if let Ok(done) = tokio::time::timeout(wait, &mut download).await {
                return done;
            }
            let now = arrived.load(Ordering::Relaxed);
            let bytes = now.saturating_sub(seen);
            let too_slow = if started {
                bytes < self.floor
            } else {
                bytes == 0 && self.first_byte.remaining().is_zero()
            };
            if too_slow {
                return Err(RegistryError::TooSlow {
                    what: what(),
                    bytes,
                    least: if started { self.floor } else { 1 },
                    period: if started { wait } else { began.elapsed() },
                });
            }
            seen = now;
        }
    }
}
