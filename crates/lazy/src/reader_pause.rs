//! When background work on stored layers waits for their readers.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Time without a read after which background work continues: longer than the pauses of a start.
const QUIET: Duration = Duration::from_millis(1500);
/// Time for which readers may hold up background work: a container that reads something every second
/// would otherwise hold it up for ever.
const PATIENCE: Duration = Duration::from_secs(30);

/// Decides when background work on stored layers waits for their readers.
#[derive(Debug, Default)]
pub(crate) struct ReaderPause {
    /// When readers began to hold up the work.
    since: Mutex<Option<Instant>>,
}

impl ReaderPause {
    /// Whether the work has to wait. `unread_for`: time since the last read of any layer.
    pub(crate) fn is_due(&self, unread_for: Duration) -> bool {
        let mut since = self.since.lock();
        if unread_for >= QUIET {
            *since = None;
            return false;
        }
        since.get_or_insert_with(Instant::now).elapsed() < PATIENCE
    }

    /// Records that there is no work: readers hold up none.
    pub(crate) fn note_idle(&self) {
        *self.since.lock() = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFTEN: Duration = Duration::from_millis(500);

    #[tokio::test(start_paused = true)]
    async fn work_waits_until_readers_are_quiet() {
        let pause = ReaderPause::default();
        for _ in 0..20 {
            assert!(pause.is_due(OFTEN));
            tokio::time::advance(OFTEN).await;
        }
        assert!(!pause.is_due(QUIET));
        // The time before the quiet does not count.
        for _ in 0..50 {
            assert!(pause.is_due(OFTEN));
            tokio::time::advance(OFTEN).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn readers_that_never_rest_hold_up_work_for_30_s() {
        let pause = ReaderPause::default();
        assert!(pause.is_due(OFTEN));
        tokio::time::advance(PATIENCE - OFTEN).await;
        assert!(pause.is_due(OFTEN));
        tokio::time::advance(OFTEN).await;
        assert!(!pause.is_due(OFTEN));
        tokio::time::advance(PATIENCE).await;
        assert!(!pause.is_due(OFTEN), "it need not wait again");
        // Only time in which there is work counts.
        pause.note_idle();
        assert!(pause.is_due(OFTEN));
    }
}
