//! Credentials for registries: looked up at request time, kept no longer than needed.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use soci_oci::Reference;

/// A secret that authenticates us at a registry. `Debug` shows the kind only.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// User name and password.
    Basic {
        /// The user name.
        user: String,
        /// The password.
        password: String,
    },
    /// An OAuth2 refresh token, traded for access tokens.
    IdentityToken(String),
    /// A registry token, sent unchanged.
    BearerToken(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Basic(…)",
            Self::IdentityToken(_) => "IdentityToken(…)",
            Self::BearerToken(_) => "BearerToken(…)",
        })
    }
}

/// Why credentials could not be looked up. Must not hold a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct CredentialError {
    reason: String,
}

impl CredentialError {
    /// Creates an error with this reason, which must not hold a secret.
    #[must_use]
    pub fn new(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
        }
    }
}

/// A source of credentials.
#[async_trait]
pub trait Credentials: Send + Sync {
    /// Returns the credential for `registry_host`, or `None` if this source has none. The host is as
    /// in image references (`docker.io`, `host:port`); for a mirror it is the mirror's own name.
    ///
    /// # Errors
    /// The source exists but cannot be read.
    async fn lookup(
        &self,
        registry_host: &str,
        reference: Option<&Reference>,
    ) -> Result<Option<Credential>, CredentialError>;
}

/// Anonymous access.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoCredentials;

#[async_trait]
impl Credentials for NoCredentials {
    async fn lookup(
        &self,
        _: &str,
        _: Option<&Reference>,
    ) -> Result<Option<Credential>, CredentialError> {
        Ok(None)
    }
}

/// One credential for one registry, as given by `--user`.
#[derive(Debug, Clone)]
pub struct StaticCredentials {
    host: String,
    credential: Credential,
}

impl StaticCredentials {
    /// Creates a source with the credential for `registry_host`; no other host receives it.
    #[must_use]
    pub fn new(registry_host: impl Into<String>, credential: Credential) -> Self {
        Self {
            host: registry_host.into(),
            credential,
        }
    }
}

#[async_trait]
impl Credentials for StaticCredentials {
    async fn lookup(
        &self,
        registry_host: &str,
        _: Option<&Reference>,
    ) -> Result<Option<Credential>, CredentialError> {
        Ok((self.host == registry_host).then(|| self.credential.clone()))
    }
}

/// Several sources, tried in order: the first credential wins. A source that fails is logged, and
/// its failure is returned only if no other source has a credential.
#[derive(Clone, Default)]
pub struct ChainedCredentials(Vec<Arc<dyn Credentials>>);

impl ChainedCredentials {
    /// Creates a chain of sources, in the order in which they are tried.
    #[must_use]
    pub fn new(sources: Vec<Arc<dyn Credentials>>) -> Self {
        Self(sources)
    }
}

impl fmt::Debug for ChainedCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChainedCredentials({} sources)", self.0.len())
    }
}

#[async_trait]
impl Credentials for ChainedCredentials {
    async fn lookup(
        &self,
        registry_host: &str,
        reference: Option<&Reference>,
    ) -> Result<Option<Credential>, CredentialError> {
        let mut failure = None;
        for source in &self.0 {
            match source.lookup(registry_host, reference).await {
                Ok(Some(credential)) => return Ok(Some(credential)),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(host = registry_host, %error, "credential source failed");
                    failure.get_or_insert(error);
                }
            }
        }
        failure.map_or(Ok(None), Err)
    }
}
