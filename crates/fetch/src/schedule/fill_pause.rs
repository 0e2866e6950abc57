//! The pause of background work for an origin that has too many requests. Readers are not held up.
//!
//! It lasts as long as the origin requests, and at least some seconds, which double with each
//! refusal until background work brings something again.

use std::time::Duration;

use tokio::time::Instant;

const FIRST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(300);
/// Longest pause that an origin can request.
const LONGEST_REQUESTED: Duration = Duration::from_secs(3600);

/// The pause of background work for one origin.
#[derive(Debug, Default)]
pub(super) struct FillPause {
    refusals: u32,
    until: Option<Instant>,
}

impl FillPause {
    /// Notes that the origin refused a request, and for how long it does not want another one.
    pub(super) fn refused(&mut self, requested: Option<Duration>, now: Instant) {
        if self.is_throttled(now) {
            // Of another request that was in flight.
            let asked = requested.map(|wait| now + wait.min(LONGEST_REQUESTED));
            self.until = self.until.max(asked);
            return;
        }
        let pause = FIRST
            .saturating_mul(1 << self.refusals.min(10))
            .min(LONGEST);
        let requested = requested.unwrap_or_default().min(LONGEST_REQUESTED);
        self.refusals = self.refusals.saturating_add(1);
        self.until = Some(now + pause.max(requested));
    }

    /// Notes that background work brought something.
    pub(super) const fn end(&mut self) {
        self.refusals = 0;
        self.until = None;
    }

    pub(super) fn is_throttled(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_as_long_as_requested_and_grows_with_each_refusal() {
        let (mut pause, mut now) = (FillPause::default(), Instant::now());
        assert!(!pause.is_throttled(now));
        pause.refused(None, now);
        pause.refused(None, now);
        assert!(pause.is_throttled(now + FIRST / 2));
        now += FIRST;
        assert!(
            !pause.is_throttled(now),
            "two refusals of one moment count once"
        );
        pause.refused(None, now);
        assert!(pause.is_throttled(now + FIRST));
        now += 2 * FIRST;
        assert!(!pause.is_throttled(now));
        pause.refused(Some(Duration::from_secs(600)), now);
        assert!(pause.is_throttled(now + Duration::from_secs(599)));
        pause.refused(Some(Duration::from_secs(u64::MAX)), now);
        assert!(!pause.is_throttled(now + LONGEST_REQUESTED));
        pause.end();
        pause.refused(None, now);
        assert!(!pause.is_throttled(now + FIRST));
        for _ in 0..40 {
            now += LONGEST;
            assert!(!pause.is_throttled(now));
            pause.refused(None, now);
        }
    }
}
