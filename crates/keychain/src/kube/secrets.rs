//! The known secrets of a cluster, as a source of credentials.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::RwLock;
use soci_oci::Reference;
use soci_registry::{Credential, CredentialError, Credentials, DockerConfigCredentials};
use tokio::sync::watch;

use super::api::{Change, Secret};
use super::sync::{self, KubeSettings};

/// Longest wait of the first look-ups after a start for the first list.
const FIRST_LIST_WAIT: Duration = Duration::from_secs(5);

/// Credentials from the secrets of type `kubernetes.io/dockerconfigjson` of a whole cluster.
/// Clones share them; the synchronisation ends with the last clone.
#[derive(Clone)]
pub struct KubeSecrets {
    pub(super) known: Arc<Known>,
    _sync: Arc<tokio::task::JoinSet<()>>,
}

/// The known secrets of the cluster.
#[derive(Default)]
pub(super) struct Known {
    /// Namespace and name → Docker configuration.
    configs: RwLock<BTreeMap<String, Vec<u8>>>,
    /// Whether the first list has come or failed: there is nothing to wait for any more.
    tried: watch::Sender<bool>,
}

impl Known {
    pub(super) fn replace(&self, secrets: Vec<Secret>) -> usize {
        let configs: BTreeMap<_, _> = secrets
            .into_iter()
            .filter_map(|secret| Some((secret.name, secret.docker_config?)))
            .collect();
        let count = configs.len();
        *self.configs.write() = configs;
        count
    }

    pub(super) fn change(&self, change: Change) {
        match change {
            Change::Set(Secret {
                name,
                docker_config: Some(config),
            }) => {
                self.configs.write().insert(name, config);
            }
            Change::Set(Secret { name, .. }) | Change::Removed(name) => {
                self.configs.write().remove(&name);
            }
            Change::Nothing => {}
        }
    }

    pub(super) fn tried(&self) {
        self.tried.send_replace(true);
    }
}

impl KubeSecrets {
    /// Starts to follow the cluster's secrets in the background, now or as soon as there is a
    /// configuration. Must be called on a tokio runtime.
    #[must_use]
    pub fn follow(settings: KubeSettings) -> Self {
        let known: Arc<Known> = Arc::default();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(sync::follow(settings, known.clone()));
        Self {
            known,
            _sync: Arc::new(tasks),
        }
    }
}

impl fmt::Debug for KubeSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KubeSecrets({})", self.known.configs.read().len())
    }
}

#[async_trait]
impl Credentials for KubeSecrets {
    async fn lookup(
        &self,
        registry_host: &str,
        _: Option<&Reference>,
    ) -> Result<Option<Credential>, CredentialError> {
        let mut tried = self.known.tried.subscribe();
        // Layers are mounted again right after the start: without the wait, anonymously.
        let _ = tokio::time::timeout(FIRST_LIST_WAIT, tried.wait_for(|tried| *tried)).await;
        for (name, config) in self.known.configs.read().iter() {
            match DockerConfigCredentials::auths_in(config, registry_host) {
                Ok(Some(credential)) => return Ok(Some(credential)),
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(secret = name, %error, "ignoring malformed image pull secret");
                }
            }
        }
        Ok(None)
    }
}
