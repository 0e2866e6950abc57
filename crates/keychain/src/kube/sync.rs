//! Following the secrets: list, watch, and both again after a failure.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::access::{Access, Login};
use super::secrets::Known;
use crate::KeychainError;

/// Where a pod finds its service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Interval between attempts to find a configuration, as in v0.15.
const CONFIGURATION_PERIOD: Duration = Duration::from_secs(10);
/// Wait after the first failure, doubled with each further one.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
/// Longest wait after a failure.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Where the configuration of the cluster is.
#[derive(Debug, Clone, Default)]
pub struct KubeSettings {
    /// `[kubeconfig_keychain] kubeconfig_path`. It may not exist yet. Without one: the files of
    /// `$KUBECONFIG`, `~/.kube/config`, or the service account of the pod.
    pub kubeconfig: Option<PathBuf>,
    /// Interval between attempts to find a configuration that does not exist yet; 10 s by default.
    pub period: Option<Duration>,
}

impl KubeSettings {
    /// Returns the kubeconfig files, in order of precedence.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        if let Some(path) = &self.kubeconfig {
            return vec![path.clone()];
        }
        if let Some(list) = std::env::var_os("KUBECONFIG").filter(|list| !list.is_empty()) {
            return std::env::split_paths(&list).collect();
        }
        let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
        vec![home.join(".kube/config")]
    }

    /// Returns the service account, in a pod and if no file is configured.
    pub(super) fn in_cluster(&self) -> Option<Result<Access, KeychainError>> {
        if self.kubeconfig.is_some() {
            return None;
        }
        let host = std::env::var("KUBERNETES_SERVICE_HOST").ok()?;
        let port = std::env::var("KUBERNETES_SERVICE_PORT").ok()?;
        Some(service_account(&host, &port, Path::new(SERVICE_ACCOUNT)))
    }
}

fn service_account(host: &str, port: &str, folder: &Path) -> Result<Access, KeychainError> {
    let authority = folder.join("ca.crt");
    let pem = std::fs::read(&authority).map_err(|source| KeychainError::File {
        path: authority,
        source,
    })?;
    let host = if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    };
    Access::new(
        &format!("https://{host}:{port}"),
        Some(pem),
        None,
        false,
        None,
        // The kubelet replaces it before it expires.
        Login::TokenFile(folder.join("token")),
    )
}

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
