//! Mirrors that failed lately, and for how long they are skipped.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::RegistryError;
use crate::endpoint::Endpoint;
use crate::error::ErrorKind;

/// Time for which a mirror is skipped after it was unreachable or served damaged data.
const COOL_DOWN: Duration = Duration::from_secs(30);

/// The end of each mirror's cool-down, by base URL. Origins are never skipped.
#[derive(Default)]
pub(crate) struct MirrorCooldown(Mutex<HashMap<String, Instant>>);

impl MirrorCooldown {
    /// Whether the endpoint may be asked now.
    pub(crate) fn allows(&self, endpoint: &Endpoint) -> bool {
        !endpoint.is_mirror()
            || self
                .0
                .lock()
                .get(endpoint.base().as_str())
                .is_none_or(|until| *until <= Instant::now())
    }

    /// Notes a failure of an endpoint; some begin its cool-down.
    pub(crate) fn note_failure(&self, endpoint: &Endpoint, error: &RegistryError) {
        if !endpoint.is_mirror() {
            return;
        }
        let mirror = endpoint.credential_host.as_str();
        tracing::debug!(mirror, %error, "mirror failed, trying the next endpoint");
        if matches!(
            error.kind(),
            ErrorKind::Unreachable | ErrorKind::Timeout | ErrorKind::DigestMismatch
        ) {
            self.0
                .lock()
                .insert(endpoint.base().to_string(), Instant::now() + COOL_DOWN);
        }
    }
}
