//! The moment at which a read gives up.

use std::time::Duration;

use tokio::time::{Instant, error::Elapsed};

/// Stands for "never": a moment that the clock can still represent.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// The moment at which a read stops waiting for credentials, connections, responses and the end of
/// a backoff. It is handed down unchanged, so that everything below ends at the same moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// A deadline at `instant`.
    #[must_use]
    pub const fn at(instant: Instant) -> Self {
        Self(instant)
    }

    /// A deadline `time` from now.
    #[must_use]
    pub fn after(time: Duration) -> Self {
        let now = Instant::now();
        Self(now.checked_add(time).unwrap_or(now + FAR))
    }

    /// A deadline that does not come: only retry budgets and time-outs end the read.
    #[must_use]
    pub fn far() -> Self {
        Self::after(FAR)
    }

    /// The moment itself.
    #[must_use]
    pub const fn instant(self) -> Instant {
        self.0
    }

    /// The time until the deadline; zero when it has passed.
    #[must_use]
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Drives `work` until the deadline.
    ///
    /// # Errors
    /// The deadline passed first; `work` was dropped.
    pub async fn limit<T>(self, work: impl Future<Output = T>) -> Result<T, Elapsed> {
        tokio::time::timeout_at(self.0, work).await
    }
}
