//! The known secrets of a cluster.

use std::collections::BTreeMap;

use parking_lot::RwLock;
use soci_oci::Reference;
use soci_registry::{Candidate, DockerConfigCredentials};
use tokio::sync::watch;

use super::api::{Change, Secret};

/// The known secrets of the cluster.
#[derive(Default)]
pub(super) struct Known {
    /// Namespace and name → Docker configuration.
    configs: RwLock<BTreeMap<String, Vec<u8>>>,
    /// Whether the first list has come or failed: there is nothing to wait for any more.
    tried: watch::Sender<bool>,
}

impl Known {
    /// Replaces all secrets; returns the number of those with a Docker configuration.
    pub(super) fn replace(&self, secrets: Vec<Secret>) -> usize {
        let configs: BTreeMap<_, _> = secrets
            .into_iter()
            .filter_map(|secret| Some((secret.name, secret.docker_config?)))
            .collect();
        let count = configs.len();
        *self.configs.write() = configs;
        count
    }

    /// Applies an event of a watch.
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

    /// Notes that the first list has come or failed.
    pub(super) fn tried(&self) {
        self.tried.send_replace(true);
    }

    /// Waits until the first list has come or failed.
    pub(super) async fn first_list(&self) {
        let _ = self.tried.subscribe().wait_for(|tried| *tried).await;
    }

    /// Returns the candidates for a repository from all secrets, whatever their namespace: which of them
    /// are right, the registry knows.
    pub(super) fn candidates(
        &self,
        registry_host: &str,
        reference: Option<&Reference>,
    ) -> Vec<Candidate> {
        let configs = self.configs.read();
        let of_secret = |(name, config): (&String, &Vec<u8>)| {
            DockerConfigCredentials::auths_in(config, registry_host, reference)
                .inspect_err(|error| {
                    tracing::debug!(secret = name, %error, "ignoring malformed image pull secret");
                })
                .unwrap_or_default()
        };
        configs.iter().flat_map(of_secret).collect()
    }

    /// Returns the number of secrets with a Docker configuration.
    pub(super) fn len(&self) -> usize {
        self.configs.read().len()
    }
}
