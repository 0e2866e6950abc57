//! Keeps what goes wrong over and over from filling the log: a registry that is down makes every
//! read fail.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// So many lines pass in each period.
const LINES: u32 = 10;
const PERIOD: Duration = Duration::from_secs(10);

/// Lets some lines pass and counts the others.
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
    /// May a line be written? If so, how many were not since the last one, if any.
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
