//! The known secrets of a cluster, as a source of credentials.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use soci_oci::Reference;
use soci_registry::{Candidate, CredentialError, Credentials};

use super::known::Known;
use super::settings::KubeSettings;
use super::sync;

/// Longest wait of the first look-ups after a start for the first list.
const FIRST_LIST_WAIT: Duration = Duration::from_secs(5);

/// Credentials from the secrets of type `kubernetes.io/dockerconfigjson` of a whole cluster.
/// Clones share them; the synchronisation ends with the last clone.
#[derive(Clone)]
pub struct KubeSecrets {
    known: Arc<Known>,
    _sync: Arc<tokio::task::JoinSet<()>>,
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
        write!(f, "KubeSecrets({})", self.known.len())
    }
}

#[async_trait]
impl Credentials for KubeSecrets {
    async fn candidates(
        &self,
        registry_host: &str,
        reference: Option<&Reference>,
    ) -> Result<Vec<Candidate>, CredentialError> {
        // Layers are mounted again right after the start: without the wait, anonymously.
        let _ = tokio::time::timeout(FIRST_LIST_WAIT, self.known.first_list()).await;
        Ok(self.known.candidates(registry_host, reference))
    }
}
