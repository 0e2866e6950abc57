//! A limit on repeated log lines: a registry that is down makes every read fail.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Number of lines that pass in each period.
const LINES: u32 = 10;
const PERIOD: Duration = Duration::from_secs(10);

/// Passes ten log lines in ten seconds and counts the rest.
#[derive(Debug, Default)]
pub struct LogLimit {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    began: Option<Instant>,
    passed: u32,
    held_back: u64,
}

impl LogLimit {
    /// Returns `Some` if a line may be written now: with the number of lines that were suppressed
    /// since the last one, if any.
    pub fn pass(&self) -> Option<Option<NonZeroU64>> {
        self.pass_at(Instant::now())
    }

    fn pass_at(&self, now: Instant) -> Option<Option<NonZeroU64>> {
        let mut state = self.state.lock();
        let over = |began| now.saturating_duration_since(began) >= PERIOD;
        if state.began.is_none_or(over) {
            state.began = Some(now);
            state.passed = 0;
        }
        if state.passed >= LINES {
            state.held_back = state.held_back.saturating_add(1);
            return None;
        }
        state.passed += 1;
        Some(NonZeroU64::new(std::mem::take(&mut state.held_back)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_lines_pass_and_the_rest_is_counted() {
        let limit = LogLimit::default();
        let now = Instant::now();
        let passed = (0..1000).filter(|_| limit.pass_at(now).is_some()).count();
        assert_eq!(passed, 10);
        assert_eq!(limit.pass_at(now + PERIOD), Some(NonZeroU64::new(990)));
        assert_eq!(limit.pass_at(now + PERIOD), Some(None));
    }
}
