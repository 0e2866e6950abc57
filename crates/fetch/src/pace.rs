//! The floor of throughput of a response: one that falls below it is given up.
//!
//! Only time in which bytes could have arrived counts: from the first byte on, and not while the
//! reader waits for memory. The wait for the first byte has a time limit of its own.

use std::time::Duration;

use tokio::time::Instant;

/// Lowest throughput of a response, in bytes per second.
pub(crate) const FLOOR: u64 = 64 << 10;
/// Time over which the throughput is taken.
const PERIOD: Duration = Duration::from_secs(15);
const LEAST: u64 = FLOOR * PERIOD.as_secs();

/// The throughput of a response since the start of the current period.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// `None` until bytes arrive.
    since: Option<Instant>,
    bytes: u64,
}

impl Pace {
    pub(crate) const PERIOD: Duration = PERIOD;

    /// Records that bytes arrived.
    pub(crate) fn arrived(&mut self, bytes: u64, now: Instant) {
        let since = *self.since.get_or_insert(now);
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes >= LEAST && now.saturating_duration_since(since) >= PERIOD {
            self.since = Some(now);
            self.bytes = 0;
        }
    }

    /// When the response is too slow unless bytes arrive before.
    pub(crate) fn limit(&self) -> Option<Instant> {
        let since = self.since.filter(|_| self.bytes < LEAST)?;
        Some(since + PERIOD)
    }

    /// Begins again: another response, or a wait that is not its fault.
    pub(crate) fn restart(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_above_the_floor_is_never_given_up() {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        assert_eq!(pace.limit(), None, "the first byte has its own limit");
        for _ in 0..1000 {
            pace.arrived(2 * FLOOR, now);
            assert!(pace.limit().is_none_or(|limit| limit > now));
            now += Duration::from_secs(1);
        }
        // The period that is full, and one more.
        let stopped = now;
        while pace.limit().is_none_or(|limit| limit > now) {
            pace.arrived(FLOOR / 2, now);
            now += Duration::from_secs(1);
        }
        assert!(now - stopped <= 3 * PERIOD);
        pace.restart();
        assert_eq!(pace.limit(), None);
    }
}
