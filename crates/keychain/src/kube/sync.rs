//! Following the secrets: list, watch, and both again after a failure.

use std::sync::Arc;
use std::time::Duration;

use super::access::Access;
use super::known::Known;
use super::settings::KubeSettings;
use crate::KeychainError;

/// Interval between attempts to find a configuration, as in v0.15.
const CONFIGURATION_PERIOD: Duration = Duration::from_secs(10);
/// Wait after the first failure, doubled with each further one.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
/// Longest wait after a failure.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Keeps the secrets up to date for ever. They stay known while the server is away.
pub(super) async fn follow(settings: KubeSettings, known: Arc<Known>) {
    let mut failures = 0_u32;
    loop {
        let failure = match follow_once(&settings, &known, &mut failures).await {
            Ok(()) => {
                tokio::time::sleep(SHORTEST_PAUSE).await;
                continue;
            }
            Err(error) => error,
        };
        known.tried();
        let pause = if matches!(failure, KeychainError::NoConfiguration { .. }) {
            if failures == 0 {
                tracing::info!(reason = %failure, "waiting for a kubeconfig");
            }
            settings.period.unwrap_or(CONFIGURATION_PERIOD)
        } else {
            tracing::warn!(
                error = soci_errors::chain(&failure),
                "cannot follow the image pull secrets of the cluster"
            );
            SHORTEST_PAUSE
                .saturating_mul(1 << failures.min(6))
                .min(LONGEST_PAUSE)
        };
        failures = failures.saturating_add(1);
        tokio::time::sleep(pause).await;
    }
}

/// Reads the configuration, lists the secrets and watches them until a failure.
async fn follow_once(
    settings: &KubeSettings,
    known: &Known,
    failures: &mut u32,
) -> Result<(), KeychainError> {
    // Read each time: it may have been replaced, and tokens of programs expire.
    let access = Access::find(settings).await?;
    let (secrets, mut version) = access.list().await?;
    let count = known.replace(secrets);
    known.tried();
    *failures = 0;
    tracing::info!(
        server = %access.server,
        secrets = count,
        "following the image pull secrets of the cluster"
    );
    while access
        .watch(&mut version, |change| known.change(change))
        .await?
    {}
    Ok(())
}
