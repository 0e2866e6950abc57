//! The rate at which one response of an origin arrives, and whether two halves would arrive sooner.

use std::time::Duration;

/// Shorter responses say nothing about the rate, and shorter halves are not worth a request; in
/// bytes.
const LEAST: u64 = 256 << 10;
/// A range that takes less than this is not halved: another request costs about as much as it saves.
const WORTHWHILE: Duration = Duration::from_millis(20);

/// The rate of the last responses.
#[derive(Debug, Default)]
pub(super) struct ResponseRate {
    /// Bytes per second; 0 until one is known.
    rate: u64,
}

impl ResponseRate {
    /// Records a response: its bytes, and the time from its beginning to its end.
    pub(super) fn ended(&mut self, bytes: u64, time: Duration) {
        if bytes < LEAST {
            return;
        }
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let rate = bytes.saturating_mul(1_000_000) / micros.max(1);
        self.rate = match self.rate {
            0 => rate,
            before => before - before / 4 + rate / 4,
        };
    }

    /// Whether a range of `bytes` is better requested in two halves.
    pub(super) fn halves_pay(&self, bytes: u64) -> bool {
        let Some(micros) = bytes.saturating_mul(1_000_000).checked_div(self.rate) else {
            return false;
        };
        bytes >= 2 * LEAST && Duration::from_micros(micros) >= WORTHWHILE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_halved_where_a_response_takes_a_while() {
        let mut rate = ResponseRate::default();
        assert!(!rate.halves_pay(u64::MAX), "nothing is known");
        rate.ended(LEAST - 1, Duration::from_secs(100));
        assert!(!rate.halves_pay(u64::MAX), "nothing is known");
        // 80 MB/s.
        rate.ended(4_000_000, Duration::from_millis(50));
        assert!(!rate.halves_pay(1_500_000));
        assert!(rate.halves_pay(1_700_000));
        let mut slow = ResponseRate::default();
        slow.ended(LEAST, Duration::from_secs(10));
        assert!(!slow.halves_pay(2 * LEAST - 1));
        assert!(slow.halves_pay(2 * LEAST));
        // The link is fast now.
        for _ in 0..20 {
            rate.ended(4_000_000, Duration::from_millis(4));
        }
        assert!(!rate.halves_pay(8_000_000));
        rate.ended(u64::MAX, Duration::ZERO);
        rate.ended(LEAST, Duration::MAX);
        assert!(!rate.halves_pay(8_000_000));
    }
}
