//! When the fetcher was last in use, by readers and by the layer store, and how much of the link is
//! left to the background.
//!
//! All times are of the monotonic clock: setting the time of day changes nothing.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Time without use after which filling begins where the configuration sets none: longer than the
/// pauses of a start, shorter than a person waits.
const QUIET: Duration = Duration::from_millis(1500);
/// Time for which readers may hold up filling before a request at a time is made between theirs:
/// a container that reads something new every second would otherwise need its registry for ever.
const PATIENCE: Duration = Duration::from_secs(30);
/// Time after a read that needed the network in which no background request is made.
const PAUSE: Duration = Duration::from_millis(100);
/// Background requests in flight to one origin while no reader needs the network.
const REQUESTS: usize = 8;
/// Time after a failure of the store during which nothing is fetched ahead of readers; doubled while
/// failures follow, up to five minutes.
const STORE_PAUSE: Duration = Duration::from_secs(10);
/// A failure this soon after a pause follows the one before it.
const SOON: Duration = Duration::from_secs(60);

/// Times of the last events, in milliseconds since the start of the fetcher.
#[derive(Debug)]
pub(crate) struct Activity {
    started: Instant,
    /// As configured.
    silence_period: Option<Duration>,
    /// The last mount, or read that needed the network.
    last_use: AtomicU64,
    /// The last read, stored or not.
    last_read: AtomicU64,
    /// When the background was last free to work, or had nothing to do.
    held_since: AtomicU64,
    /// A client waits for an image to be complete.
    requested: AtomicBool,
    /// End of the pause after a failure of the store.
    store_pause: AtomicU64,
    /// Number of pauses that followed each other.
    store_pauses: AtomicU64,
}

impl Activity {
    /// `silence_period`: time without use after which background work is allowed; `None`: as soon as
    /// a start is over.
    pub(crate) fn new(silence_period: Option<Duration>) -> Self {
        Self {
            started: Instant::now(),
            silence_period,
            last_use: AtomicU64::new(0),
            last_read: AtomicU64::new(0),
            held_since: AtomicU64::new(0),
            requested: AtomicBool::new(false),
            store_pause: AtomicU64::new(0),
            store_pauses: AtomicU64::new(0),
        }
    }

    fn millis(&self) -> u64 {
        millis(self.started.elapsed())
    }

    /// Records a mount, or a read that needs the network.
    pub(crate) fn note_use(&self) {
        self.last_use.store(self.millis(), Ordering::Relaxed);
    }

    /// Records a read, stored or not.
    pub(crate) fn note_read(&self) {
        self.last_read.store(self.millis(), Ordering::Relaxed);
    }

    /// Time since the last read, stored or not.
    pub(crate) fn unread_for(&self) -> Duration {
        let last_read = self.last_read.load(Ordering::Relaxed);
        Duration::from_millis(self.millis().saturating_sub(last_read))
    }

    /// Records that nothing waits to be filled: readers hold up no one.
    pub(crate) fn note_idle(&self) {
        self.held_since.store(self.millis(), Ordering::Relaxed);
    }

    /// Notes whether a client waits for an image to be complete.
    pub(crate) fn set_requested(&self, requested: bool) {
        self.requested.store(requested, Ordering::Relaxed);
    }

    /// Whether there has been no use for long enough to allow background work.
    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet_for() >= self.silence_period.unwrap_or(QUIET)
    }

    fn quiet_for(&self) -> Duration {
        let last_use = self.last_use.load(Ordering::Relaxed);
        Duration::from_millis(self.millis().saturating_sub(last_use))
    }

    /// Number of background requests that may be in flight now.
    pub(crate) fn background_requests(&self) -> usize {
        if self.is_quiet() {
            self.note_idle();
            return REQUESTS;
        }
        if self.quiet_for() < PAUSE {
            return 0;
        }
        if self.requested.load(Ordering::Relaxed) {
            return REQUESTS;
        }
        let since = self.held_since.load(Ordering::Relaxed);
        let held = Duration::from_millis(self.millis().saturating_sub(since));
        usize::from(self.silence_period.is_none() && held >= PATIENCE)
    }

    /// Records that the store could not take a span.
    pub(crate) fn note_store_failure(&self) {
        let (now, last) = (self.millis(), self.store_pause.load(Ordering::Relaxed));
        if now < last {
            // Of the same moment: other spans were in flight.
            return;
        }
        let failed_again = last > 0 && now < last.saturating_add(millis(SOON));
        let pauses = match failed_again {
            true => self.store_pauses.load(Ordering::Relaxed).saturating_add(1),
            false => 0,
        };
        self.store_pauses.store(pauses, Ordering::Relaxed);
        let pause = STORE_PAUSE.saturating_mul(1 << pauses.min(5));
        let until = now.saturating_add(millis(pause));
        self.store_pause.store(until, Ordering::Relaxed);
    }

    /// Whether the store is expected to take spans that no reader waits for.
    pub(crate) fn store_accepts(&self) -> bool {
        self.millis() >= self.store_pause.load(Ordering::Relaxed)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pass(time: Duration) {
        tokio::time::advance(time).await;
    }

    #[tokio::test(start_paused = true)]
    async fn filling_begins_when_a_start_is_over_and_again_after_each_reader() {
        let activity = Activity::new(None);
        for _ in 0..20 {
            activity.note_use();
            pass(QUIET / 2).await;
            assert_eq!(activity.background_requests(), 0);
        }
        pass(QUIET / 2).await;
        assert_eq!(activity.background_requests(), REQUESTS);
        activity.note_use();
        assert_eq!(activity.background_requests(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn readers_that_never_rest_leave_a_request_at_a_time_between_theirs() {
        let activity = Activity::new(None);
        let mut most = 0;
        for _ in 0..100 {
            activity.note_use();
            assert_eq!(activity.background_requests(), 0);
            pass(PAUSE * 5).await;
            most = most.max(activity.background_requests());
        }
        assert_eq!(most, 1);
        // As long as nothing is to be filled, nothing is held up.
        activity.note_idle();
        activity.note_use();
        pass(PAUSE * 5).await;
        assert_eq!(activity.background_requests(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_configured_silence_is_waited_for_however_long_it_takes() {
        let silence = Duration::from_secs(30);
        let activity = Activity::new(Some(silence));
        for _ in 0..10 {
            activity.note_use();
            pass(silence - PAUSE).await;
            assert_eq!(activity.background_requests(), 0);
        }
        pass(PAUSE).await;
        assert_eq!(activity.background_requests(), REQUESTS);
        // A client that waits for an image does not wait for silence.
        activity.note_use();
        activity.set_requested(true);
        assert_eq!(activity.background_requests(), 0);
        pass(PAUSE).await;
        assert_eq!(activity.background_requests(), REQUESTS);
    }
}
