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
    /// Bytes per second in the last period that began and ended with work that waited.
    filled_rate: Option<u64>,
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
            filled_rate: None,
        }
    }

    pub(crate) const fn get(&self) -> usize {
        self.now
    }

    /// Rate of the link in bytes per second when it was last filled.
    pub(crate) const fn link_rate(&self) -> Option<u64> {
        self.filled_rate
    }

    /// Records that work waits because the limit is reached.
    pub(crate) fn waited(&mut self, at: Instant) {
        if !self.waited {
            // What arrived before says nothing of the link.
            (self.since, self.bytes) = (at, 0);
        }
        self.waited = true;
    }

    /// Records that bytes arrived while `running` requests were in flight.
    pub(crate) fn received(&mut self, bytes: u64, running: usize, at: Instant) {
        self.bytes = self.bytes.saturating_add(bytes);
        let elapsed = at.saturating_duration_since(self.since);
        if elapsed < PERIOD {
            return;
        }
        let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        let rate = self.bytes.saturating_mul(1000) / millis.max(1);
        if self.waited {
            // All requests but the one that is for background work.
            let is_full = running + 1 >= self.now;
            self.filled_rate = is_full.then_some(rate).or(self.filled_rate);
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
            limit.waited(at);
            at += PERIOD;
            limit.received(bytes, 6, at);
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
            limit.waited(now);
            limit.received(1000 << step.min(40), 16, now);
        }
        assert_eq!(limit.get(), 16);
    }

    #[test]
    fn the_rate_of_a_link_is_that_of_a_time_in_which_it_was_full() {
        let begin = Instant::now();
        let mut limit = InflightLimit::new(16, begin);
        // A reader alone, and a long time with nothing.
        limit.received(1000, 1, begin + PERIOD);
        assert_eq!(limit.link_rate(), None);
        let later = begin + 100 * PERIOD;
        limit.waited(later);
        limit.received(4000, FIRST, later + PERIOD / 2);
        limit.received(6000, FIRST, later + PERIOD);
        assert_eq!(limit.link_rate(), Some(20_000));
        // What was left when nothing waited any more.
        limit.waited(later + PERIOD);
        limit.received(10, 1, later + 3 * PERIOD);
        assert_eq!(limit.link_rate(), Some(20_000));
    }
}
