//! How fast responses are: time to first byte, rate per response, rate of all together.

use std::time::Duration;

use tokio::time::Instant;

/// Late by no more than this, a sender may catch up; later than this, the time is lost. Covers the
/// timer's granularity of 1 ms and a scheduler under load without letting through bursts.
const CATCH_UP: Duration = Duration::from_millis(20);

/// The speed of a registry. `None` means unlimited. Rates are in bytes per second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Throttle {
    /// What every response waits before its first byte.
    pub first_byte: Duration,
    /// The rate of each response.
    pub per_response: Option<u64>,
    /// The rate of all responses together.
    pub total: Option<u64>,
}

impl Throttle {
    /// No limit at all.
    #[must_use]
    pub fn unlimited() -> Self {
        Self::default()
    }

    /// What a cloud instance sees of a cloud registry: 30 ms to the first byte, 80 MB/s per
    /// response, 250 MB/s in all.
    #[must_use]
    pub fn cloud() -> Self {
        Self {
            first_byte: Duration::from_millis(30),
            per_response: Some(80_000_000),
            total: Some(250_000_000),
        }
    }
}

/// Assigns places on a timeline that runs at a rate.
#[derive(Debug)]
pub(crate) struct Pacer {
    next: Option<Instant>,
}

impl Pacer {
    pub(crate) fn new() -> Self {
        Self { next: None }
    }

    /// Takes room for `bytes` and returns when they may have been sent.
    pub(crate) fn take(&mut self, bytes: u64, rate: u64) -> Instant {
        let now = Instant::now();
        let earliest = now.checked_sub(CATCH_UP).unwrap_or(now);
        let start = match self.next {
            None => now,
            Some(next) => next.max(earliest),
        };
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
        let end = start + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.next = Some(end);
        end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pacer_gives_out_exactly_its_rate() {
        let mut pacer = Pacer::new();
        let first = pacer.take(0, 1000);
        let end = (0..100).map(|_| pacer.take(10, 1000)).last().unwrap();
        assert_eq!(end - first, Duration::from_secs(1));
    }
}
