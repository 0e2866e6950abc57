//! Mirrors that failed lately: asked last until they work again. Origins are always asked.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::RegistryError;
use crate::endpoint::Endpoint;
use crate::error::ErrorKind;

/// Time after the first failure until a mirror is preferred again; doubled with each further one.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
/// Longest such time.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Most hosts that are remembered.
const MAX_HOSTS: usize = 1024;

/// A mirror that failed, by base URL.
struct Down {
    failures: u32,
    /// When one request tries it again.
    until: Instant,
}

/// The mirrors that failed lately.
#[derive(Default)]
pub(crate) struct HostHealth(Mutex<HashMap<String, Down>>);

impl HostHealth {
    /// Whether the endpoint may be asked first. When a mirror's pause is over, one caller tries it; the
    /// others wait for what comes of that, or for another pause.
    pub(crate) fn prefers(&self, endpoint: &Endpoint) -> bool {
        if !endpoint.is_mirror() {
            return true;
        }
        let mut all = self.0.lock();
        let Some(down) = all.get_mut(endpoint.base().as_str()) else {
            return true;
        };
        let now = Instant::now();
        if down.until > now {
            return false;
        }
        down.until = now + pause(down.failures);
        true
    }

    /// The failures of a mirror since it last worked, and the time for which it is asked last.
    pub(crate) fn of(&self, endpoint: &Endpoint) -> Option<(u32, Duration)> {
        let all = self.0.lock();
        let down = all.get(endpoint.base().as_str())?;
        let left = down.until.saturating_duration_since(Instant::now());
        Some((down.failures, left))
    }

    /// Notes that the endpoint answered.
    pub(crate) fn worked(&self, endpoint: &Endpoint) {
        if endpoint.is_mirror() && self.0.lock().remove(endpoint.base().as_str()).is_some() {
            tracing::info!(mirror = %endpoint.base(), "mirror works again");
        }
    }

    /// Notes a failure of an endpoint. Those that say that it cannot be used put it last.
    pub(crate) fn failed(&self, endpoint: &Endpoint, error: &RegistryError) {
        if !endpoint.is_mirror() {
            return;
        }
        let mirror = endpoint.base();
        tracing::debug!(%mirror, %error, "mirror failed, trying the next endpoint");
        if !matches!(
            error.kind(),
            ErrorKind::Unreachable
                | ErrorKind::Timeout
                | ErrorKind::BadBody
                | ErrorKind::DigestMismatch
                | ErrorKind::Protocol
        ) {
            return;
        }
        let mut all = self.0.lock();
        let now = Instant::now();
        if all.len() >= MAX_HOSTS && !all.contains_key(mirror.as_str()) {
            all.retain(|_, down| down.until > now);
        }
        let down = all.entry(mirror.to_string()).or_insert(Down {
            failures: 0,
            until: now,
        });
        if down.failures == 0 {
            tracing::info!(%mirror, %error, "mirror does not work; the next host is asked first");
        }
        down.failures = down.failures.saturating_add(1);
        down.until = now + pause(down.failures);
    }
}

fn pause(failures: u32) -> Duration {
    let doubled = 1_u32 << failures.saturating_sub(1).min(10);
    SHORTEST_PAUSE.saturating_mul(doubled).min(LONGEST_PAUSE)
}
