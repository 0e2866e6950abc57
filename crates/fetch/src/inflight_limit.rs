//! The adaptive limit on requests in flight.
//!
//! After every half second in which work had to wait for a free request, the throughput is compared
//! with the best so far: a tenth more raises the limit by one, and so does every fourth period
//! without (the link may have become free). A time-out or a 429 halves it, at most once a second.

use std::time::Duration;

use tokio::time::Instant;

const LEAST: usize = 2;
const FIRST: usize = 6;
const PERIOD: Duration = Duration::from_millis(500);
const BETWEEN_HALVINGS: Duration = Duration::from_secs(1);
const PROBE_EVERY: u32 = 4;

/// The limit on requests in flight.
#[derive(Debug)]
pub(crate) struct InflightLimit {
    now: usize,
    most: usize,
    since: Instant,
    bytes: u64,
    waited: bool,
    /// Best throughput so far in bytes per second.
    best: u64,
    quiet: u32,
    halved: Option<Instant>,
}

impl InflightLimit {
    pub(crate) fn new(most: usize, at: Instant) -> Self {
        let most = most.max(LEAST);
        Self {
            now: FIRST.min(most),
            most,
            since: at,
            bytes: 0,
            waited: false,
            best: 0,
            quiet: 0,
            halved: None,
        }
    }

    pub(crate) const fn get(&self) -> usize {
        self.now
    }

    /// Records that work waits because the limit is reached.
    pub(crate) const fn waited(&mut self) {
        self.waited = true;
    }

    /// Records that bytes arrived.
    pub(crate) fn received(&mut self, bytes: u64, at: Instant) {
        self.bytes = self.bytes.saturating_add(bytes);
        let elapsed = at.saturating_duration_since(self.since);
        if elapsed < PERIOD {
            return;
        }
        let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        let rate = self.bytes.saturating_mul(1000) / millis.max(1);
        if self.waited {
            self.quiet += 1;
            if rate > self.best.saturating_add(self.best / 10) || self.quiet >= PROBE_EVERY {
                self.now = (self.now + 1).min(self.most);
                self.best = rate;
                self.quiet = 0;
            }
        }
        self.since = at;
        self.bytes = 0;
        self.waited = false;
    }

    /// Records that the registry or the link is overloaded.
    pub(crate) fn overloaded(&mut self, at: Instant) {
        let recently = self
            .halved
            .is_some_and(|halved| at.saturating_duration_since(halved) < BETWEEN_HALVINGS);
        if !recently {
            self.now = (self.now / 2).max(LEAST);
            self.halved = Some(at);
            self.best = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_while_that_helps_and_halves_on_complaints() {
        let mut at = Instant::now();
        let mut limit = InflightLimit::new(16, at);
        let mut period = |limit: &mut InflightLimit, bytes| {
            limit.waited();
            at += PERIOD;
            limit.received(bytes, at);
            at
        };
        period(&mut limit, 1000);
        period(&mut limit, 1200);
        assert_eq!(limit.get(), 8);
        for _ in 0..3 {
            period(&mut limit, 1200);
        }
        assert_eq!(limit.get(), 8);
        let mut now = period(&mut limit, 1200);
        assert_eq!(limit.get(), 9);
        limit.overloaded(now);
        limit.overloaded(now);
        assert_eq!(limit.get(), 4);
        for _ in 0..9 {
            now += BETWEEN_HALVINGS;
            limit.overloaded(now);
        }
        assert_eq!(limit.get(), 2);
        for step in 1..100 {
            now += PERIOD;
            limit.waited();
            limit.received(1000 << step.min(40), now);
        }
        assert_eq!(limit.get(), 16);
    }
}
