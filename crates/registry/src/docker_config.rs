//! Credentials from Docker's configuration file.

use async_trait::async_trait;
use oci::Reference;

use crate::{Credential, CredentialError, Credentials};

/// Credentials from `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`.
#[derive(Debug, Clone, Default)]
pub struct DockerConfigCredentials {
    path: Option<std::path::PathBuf>,
}

impl DockerConfigCredentials {
    /// Where Docker keeps it: looked for at each request.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// This file instead.
    #[must_use]
    pub fn at(path: impl Into<std::path::PathBuf>) -> Self {
        Self {
            path: Some(path.into()),
        }
    }
}

#[async_trait]
impl Credentials for DockerConfigCredentials {
    async fn lookup(
        &self,
        _: &str,
        _: Option<&Reference>,
    ) -> Result<Option<Credential>, CredentialError> {
        let _ = &self.path;
        todo!()
    }
}
