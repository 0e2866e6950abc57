//! Who we are towards a registry: looked up at request time, never kept longer than needed.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use soci_oci::Reference;

/// What proves who we are. `Debug` shows the kind only.
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
    /// A registry token, sent as it is.
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
    /// An error with this reason, which must not hold a secret.
    #[must_use]
    pub fn new(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
        }
    }
}

/// A place where credentials are found.
#[async_trait]
pub trait Credentials: Send + Sync {
    /// The credential for `registry_host` (as in image references: `docker.io`, `host:port`; a
    /// mirror's own name for a mirror). `None`: this place knows none.
    ///
    /// # Errors
    /// The place exists but cannot be read.
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

/// One credential, for one registry: what `--user` gives.
#[derive(Debug, Clone)]
pub struct StaticCredentials {
    host: String,
    credential: Credential,
}

impl StaticCredentials {
    /// The credential for `registry_host`; no other host gets it.
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

/// Several places, asked in order; the first that knows one wins. A place that fails is logged
/// and passed over as long as another one knows a credential.
#[derive(Clone, Default)]
pub struct ChainedCredentials(Vec<Arc<dyn Credentials>>);

impl ChainedCredentials {
    /// The places in the order in which they are asked.
    #[must_use]
    pub fn new(places: Vec<Arc<dyn Credentials>>) -> Self {
        Self(places)
    }
}

impl fmt::Debug for ChainedCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChainedCredentials({} places)", self.0.len())
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
        for place in &self.0 {
            match place.lookup(registry_host, reference).await {
                Ok(Some(credential)) => return Ok(Some(credential)),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(host = registry_host, %error, "a place for credentials failed");
                    failure.get_or_insert(error);
                }
            }
        }
        failure.map_or(Ok(None), Err)
    }
}
