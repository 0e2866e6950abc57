//! Credentials for registries: looked up at request time, kept no longer than needed.

use std::cmp::Reverse;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use soci_oci::Reference;

use crate::{CredentialError, CredentialScope};

/// A secret that authenticates us at a registry. `Debug` shows the kind only.
#[derive(Clone, PartialEq, Eq, Hash)]
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

/// A credential that may be the right one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The credential.
    pub credential: Credential,
    /// How much of the registry it is for.
    pub scope: CredentialScope,
}

impl Candidate {
    /// Creates a candidate.
    #[must_use]
    pub const fn new(credential: Credential, scope: CredentialScope) -> Self {
        Self { credential, scope }
    }

    /// Sorts the most specific to the front; the order of the source decides between equals.
    pub(crate) fn sort(candidates: &mut [Self]) {
        candidates.sort_by_key(|candidate| Reverse(candidate.scope));
    }
}

/// A source of credentials.
#[async_trait]
pub trait Credentials: Send + Sync {
    /// Returns the credentials that may be right for `registry_host` and the repository of
    /// `reference`, in the order in which the source prefers them. The host is as in image references
    /// (`docker.io`, `host:port`); for a mirror it is the mirror's own name.
    ///
    /// # Errors
    /// The source exists but cannot be read.
    async fn candidates(
        &self,
        registry_host: &str,
        reference: Option<&Reference>,
    ) -> Result<Vec<Candidate>, CredentialError>;

    /// Returns the most specific candidate.
    ///
    /// # Errors
    /// As for [`Credentials::candidates`].
    async fn lookup(
        &self,
        registry_host: &str,
        reference: Option<&Reference>,
    ) -> Result<Option<Credential>, CredentialError> {
        let mut candidates = self.candidates(registry_host, reference).await?;
        Candidate::sort(&mut candidates);
        let first = candidates.into_iter().next();
        Ok(first.map(|candidate| candidate.credential))
    }
}

/// Anonymous access.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoCredentials;

#[async_trait]
impl Credentials for NoCredentials {
    async fn candidates(
        &self,
        _: &str,
        _: Option<&Reference>,
    ) -> Result<Vec<Candidate>, CredentialError> {
        Ok(Vec::new())
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
    async fn candidates(
        &self,
        registry_host: &str,
        _: Option<&Reference>,
    ) -> Result<Vec<Candidate>, CredentialError> {
        // Given for this use: before everything that is configured.
        let given = || Candidate::new(self.credential.clone(), CredentialScope::Image);
        Ok((self.host == registry_host)
            .then(given)
            .into_iter()
            .collect())
    }
}

/// Several sources in order: the candidates of all of them. A source that fails is logged, and its
/// failure is returned only if no other source has a credential.
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
    async fn candidates(
        &self,
        registry_host: &str,
        reference: Option<&Reference>,
    ) -> Result<Vec<Candidate>, CredentialError> {
        let (mut all, mut failure) = (Vec::new(), None);
        for source in &self.0 {
            match source.candidates(registry_host, reference).await {
                Ok(candidates) => all.extend(candidates),
                Err(error) => {
                    tracing::warn!(host = registry_host, %error, "credential source failed");
                    failure.get_or_insert(error);
                }
            }
        }
        match failure {
            Some(error) if all.is_empty() => Err(error),
            _ => Ok(all),
        }
    }
}
