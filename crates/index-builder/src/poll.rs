//! Polling: the tags of a registry that sends no events.

use std::collections::BTreeSet;

use soci_oci::{Digest, Reference};
use soci_registry::{Client, Misconfiguration, RegistryError};

use crate::{Decision, Push, PushPolicy};

/// Lists what the registry has under the tags that the policy is for, with digests. A repository or
/// tag that cannot be read is left out with a line in the log.
///
/// # Errors
/// The list of repositories cannot be read.
pub async fn poll(
    client: &Client,
    registry: &str,
    policy: &PushPolicy,
) -> Result<Vec<Push>, RegistryError> {
    let mut found = Vec::new();
    for repository in client.repositories(registry).await? {
        let name: Reference = match format!("{registry}/{repository}").parse() {
            Ok(name) => name,
            Err(error) => {
                tracing::warn!(%error, "the registry lists what is not a repository");
                continue;
            }
        };
        let tags = match client.tags(&name).await {
            Ok(tags) => tags,
            // The catalog keeps repositories without any tag.
            Err(error) if error.is_not_found() => continue,
            Err(error) => {
                tracing::warn!(repository = %name, error = %soci_errors::chain(&error), "cannot list tags");
                continue;
            }
        };
        // In an order that each run has, whatever the registry's is.
        let tags: BTreeSet<String> = tags.into_iter().collect();
        for tag in tags {
            let Ok(push) = Push::new(registry, &repository, Some(&tag), None) else {
                continue;
            };
            let Decision::Index(push) = policy.decide(push) else {
                continue;
            };
            match digest(client, &push).await {
                Ok(digest) => found.push(Push {
                    digest: Some(digest),
                    ..push
                }),
                Err(error) if error.is_not_found() => {}
                Err(error) => {
                    tracing::warn!(image = %push, error = %soci_errors::chain(&error), "cannot look at a tag");
                }
            }
        }
    }
    Ok(found)
}

async fn digest(client: &Client, push: &Push) -> Result<Digest, RegistryError> {
    let reference: Reference = push
        .tagged_name()
        .parse()
        .map_err(|error: soci_oci::ReferenceError| Misconfiguration::from(error))?;
    Ok(client.resolve(&reference).await?.digest)
}
