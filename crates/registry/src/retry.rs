//! Backoff between attempts: exponential, with full jitter, never shorter than `Retry-After`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use crate::error::ErrorKind;
use crate::{Deadline, RegistryError, RetryPolicy};

/// The retry budget of one operation.
#[derive(Debug)]
pub(crate) struct Backoff {
    policy: RetryPolicy,
    /// Counts the retries; callers adapt how much they request at a time.
    retries: Arc<AtomicU64>,
    deadline: Deadline,
    /// A longer wait is not begun.
    pub(crate) longest_wait: Option<Duration>,
    /// A server that has too many requests is not asked again: the caller has no hurry.
    pub(crate) gives_way: bool,
    used: u32,
    damaged: bool,
}

impl Backoff {
    pub(crate) fn new(policy: RetryPolicy, retries: Arc<AtomicU64>, deadline: Deadline) -> Self {
        Self {
            policy,
            retries,
            deadline,
            longest_wait: None,
            gives_way: false,
            used: 0,
            damaged: false,
        }
    }

    /// Waits after a failure. Returns the error when trying again is useless, the budget is used
    /// up, or the wait (which may be the server's `Retry-After`) would end after the deadline.
    pub(crate) async fn wait_after(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        // Content may have been damaged in transit: worth one more attempt.
        let damaged = error.kind() == ErrorKind::DigestMismatch && !self.damaged;
        if !(error.is_transient() || damaged) || self.used >= self.policy.max_retries {
            return Err(error);
        }
        self.damaged |= damaged;
        if self.gives_way && error.is_throttle() {
            return Err(error);
        }
        let wait = delay(self.policy, self.used, error.retry_after(), fastrand::f64());
        let too_long = self.longest_wait.is_some_and(|longest| wait > longest);
        if too_long || wait >= self.deadline.remaining() {
            return Err(error);
        }
        self.used += 1;
        self.retries.fetch_add(1, Ordering::Relaxed);
        let (attempt, wait_ms) = (self.used, wait.as_millis());
        tracing::debug!(%error, attempt, wait_ms, "retrying request");
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// Refills the budget after progress.
    pub(crate) fn reset(&mut self) {
        self.used = 0;
    }

    /// Sets another moment at which the retries end.
    pub(crate) fn end_at(&mut self, deadline: Deadline) {
        self.deadline = deadline;
    }
}

/// Computes a wait between the shortest and `shortest * 2^(used + 1)`, at `fraction` (0..1) of that
/// span. `Retry-After` is a lower bound, the longest wait of the policy an upper one.
fn delay(policy: RetryPolicy, used: u32, retry_after: Option<Duration>, fraction: f64) -> Duration {
    let top = policy
        .min_wait
        .saturating_mul(2_u32.saturating_pow(used.saturating_add(1)))
        .min(policy.max_wait);
    let spread = top.saturating_sub(policy.min_wait);
    let jittered = policy.min_wait + spread.mul_f64(fraction.clamp(0.0, 1.0));
    jittered
        .max(retry_after.unwrap_or_default())
        .min(policy.max_wait)
}

/// Parses `Retry-After` (RFC 9110 section 10.2.3): seconds, or an HTTP date.
pub(crate) fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(value.trim()).ok()?;
    Some(at.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: RetryPolicy = RetryPolicy {
        max_retries: 3,
        min_wait: Duration::from_millis(10),
        max_wait: Duration::from_millis(100),
    };

    #[test]
    fn waits_stay_between_their_bounds() {
        for used in 0..40 {
            for fraction in [0.0, 0.3, 1.0] {
                let wait = delay(POLICY, used, None, fraction);
                assert!(wait >= POLICY.min_wait && wait <= POLICY.max_wait);
            }
        }
        assert_eq!(delay(POLICY, 0, None, 1.0), Duration::from_millis(20));
        let asked = Some(Duration::from_millis(70));
        assert_eq!(delay(POLICY, 0, asked, 0.0), Duration::from_millis(70));
        let too_long = Some(Duration::from_secs(9));
        assert_eq!(delay(POLICY, 0, too_long, 0.0), POLICY.max_wait);
    }

    #[test]
    fn retry_after_is_read_in_both_forms() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777 - 5);
        assert_eq!(parse_retry_after("7", now), Some(Duration::from_secs(7)));
        assert_eq!(
            parse_retry_after("Sun, 06 Nov 1994 08:49:37 GMT", now),
            Some(Duration::from_secs(5))
        );
        assert_eq!(parse_retry_after("soon", now), None);
    }
}
