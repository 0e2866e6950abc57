//! The `Authorization` of requests: remembers the challenge of each registry and its tokens, per
//! host and scope. Each token is fetched once however many requests wait for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use parking_lot::Mutex;
use soci_oci::Reference;
use tokio::time::Instant;

use crate::bounded::Bounded;
use crate::challenge::{Challenge, choose};
use crate::endpoint::Endpoint;
use crate::reach::Reach;
use crate::response::Incoming;
use crate::token::{self, TokenRequest, basic_header, bearer_header};
use crate::transport::Transport;
use crate::{Credential, CredentialError, Credentials, RegistryError};

/// Time after which a credential that is sent unchanged is looked up again.
const KEEP_CREDENTIAL: Duration = Duration::from_secs(60);
/// Longest wait for a source of credentials.
const LOOKUP_LIMIT: Duration = Duration::from_secs(60);
/// Number of grants at which expired ones are removed.
const MANY_GRANTS: usize = 1024;

/// A value for the `Authorization` header.
#[derive(Clone)]
pub(crate) struct Authorization {
    pub(crate) header: HeaderValue,
    /// The secret in it, which must not appear in messages.
    pub(crate) secret: String,
    /// Whether it was kept from an earlier request and may be stale.
    cached: bool,
}

impl Authorization {
    /// Whether it was kept from an earlier request.
    pub(crate) const fn is_cached(&self) -> bool {
        self.cached
    }
}

struct Grant {
    authorization: Authorization,
    until: Instant,
}

/// A challenge, and how far its realm may lead.
#[derive(Clone)]
struct Known {
    challenge: Challenge,
    reach: Reach,
}

/// The grant of one scope; its lock is held while it is fetched.
type Slot = Arc<tokio::sync::Mutex<Option<Grant>>>;

pub(crate) struct Authorizer {
    credentials: Arc<dyn Credentials>,
    /// By the endpoint's base URL.
    challenges: Mutex<Bounded<String, Known>>,
    /// By the endpoint's base URL and scope.
    grants: Mutex<HashMap<(String, String), Slot>>,
}

/// The endpoint, the image and the scope that a request needs authorization for.
pub(crate) struct AuthTarget<'a> {
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) reference: &'a Reference,
    /// Scopes separated by spaces, as in `repository:a/b:pull`.
    scope: String,
}

impl<'a> AuthTarget<'a> {
    /// Reading the repository of `reference`.
    pub(crate) fn pull(endpoint: &'a Endpoint, reference: &'a Reference) -> Self {
        Self {
            endpoint,
            reference,
            scope: format!("repository:{}:pull", reference.repository()),
        }
    }

    /// Writing to the repository of `reference`.
    pub(crate) fn push(endpoint: &'a Endpoint, reference: &'a Reference) -> Self {
        Self {
            endpoint,
            reference,
            scope: format!("repository:{}:pull,push", reference.repository()),
        }
    }

    /// The same, and reading another repository of the endpoint.
    pub(crate) fn and_pull(mut self, repository: &str) -> Self {
        self.scope
            .push_str(&format!(" repository:{repository}:pull"));
        self
    }
}

impl Authorizer {
    pub(crate) fn new(credentials: Arc<dyn Credentials>) -> Self {
        Self {
            credentials,
            challenges: Mutex::new(Bounded::new(MANY_GRANTS)),
            grants: Mutex::default(),
        }
    }

    /// Returns what to send with a first attempt; `None` if the registry has not challenged us yet.
    pub(crate) async fn prepare(
        &self,
        transport: &Transport,
        target: &AuthTarget<'_>,
    ) -> Result<Option<Authorization>, RegistryError> {
        let known = self
            .challenges
            .lock()
            .get(target.endpoint.base().as_str())
            .cloned();
        match known {
            None => Ok(None),
            Some(challenge) => self.grant(transport, target, &challenge, None).await,
        }
    }

    /// Returns what to send after a 401 in response to `refused`; `None` if we have nothing that
    /// would help.
    pub(crate) async fn challenged(
        &self,
        transport: &Transport,
        target: &AuthTarget<'_>,
        response: &Incoming,
        refused: Option<&Authorization>,
    ) -> Result<Option<Authorization>, RegistryError> {
        let Some(challenge) = choose(response.headers()) else {
            return Ok(None);
        };
        let challenge = Known {
            challenge,
            reach: response.names(),
        };
        let mut remembered = challenge.clone();
        if let Challenge::Bearer { scope, .. } = &mut remembered.challenge {
            // The scope was for this request.
            *scope = None;
        }
        self.challenges
            .lock()
            .insert(target.endpoint.base().to_string(), remembered);
        self.grant(transport, target, &challenge, refused).await
    }

    /// Returns what to send after a 403 in response to `refused`; `None` if that was fresh or there
    /// is nothing else: the refusal is final.
    pub(crate) async fn renewed(
        &self,
        transport: &Transport,
        target: &AuthTarget<'_>,
        refused: Option<&Authorization>,
    ) -> Result<Option<Authorization>, RegistryError> {
        let Some(refused) = refused.filter(|refused| refused.cached) else {
            return Ok(None);
        };
        let base = target.endpoint.base().as_str();
        let Some(challenge) = self.challenges.lock().get(base).cloned() else {
            return Ok(None);
        };
        let fresh = self
            .grant(transport, target, &challenge, Some(refused))
            .await?;
        Ok(fresh.filter(|fresh| fresh.secret != refused.secret))
    }

    async fn grant(
        &self,
        transport: &Transport,
        target: &AuthTarget<'_>,
        known: &Known,
        refused: Option<&Authorization>,
    ) -> Result<Option<Authorization>, RegistryError> {
        let slot = self.slot(target);
        let mut slot = slot.lock().await;
        if let Some(grant) = slot.as_ref()
            && grant.until > Instant::now()
            && refused.is_none_or(|refused| refused.secret != grant.authorization.secret)
        {
            return Ok(Some(Authorization {
                cached: true,
                ..grant.authorization.clone()
            }));
        }
        *slot = None;
        let credential = self.lookup(target).await?;
        let grant = match (&known.challenge, credential) {
            (_, Some(Credential::BearerToken(secret))) => {
                made(bearer_header(&secret), secret, KEEP_CREDENTIAL)
            }
            (Challenge::Basic, Some(Credential::Basic { user, password })) => {
                made(basic_header(&user, &password), password, KEEP_CREDENTIAL)
            }
            (Challenge::Basic, _) => return Ok(None),
            (
                Challenge::Bearer {
                    realm,
                    service,
                    scope,
                },
                credential,
            ) => {
                let scope = united(&target.scope, scope.as_deref().unwrap_or_default());
                let wanted = TokenRequest {
                    realm,
                    service: service.as_deref(),
                    scope: &scope,
                    reach: known.reach,
                };
                let token =
                    token::fetch(transport, target.endpoint, &wanted, credential.as_ref()).await?;
                // Not used shortly before its end: it must still be valid when it arrives.
                let margin = (token.lifetime / 10).min(Duration::from_secs(15));
                made(
                    bearer_header(&token.secret),
                    token.secret,
                    token.lifetime.saturating_sub(margin),
                )
            }
        };
        let grant = grant.ok_or_else(|| RegistryError::Credentials {
            host: target.endpoint.credential_host.clone(),
            source: CredentialError::new("cannot send the credential or token in a header"),
        })?;
        let authorization = grant.authorization.clone();
        *slot = Some(grant);
        Ok(Some(authorization))
    }

    fn slot(&self, target: &AuthTarget<'_>) -> Slot {
        let mut grants = self.grants.lock();
        if grants.len() >= MANY_GRANTS {
            grants.retain(|_, slot| {
                Arc::strong_count(slot) > 1
                    || slot
                        .try_lock()
                        .is_ok_and(|grant| grant.as_ref().is_some_and(|g| g.until > Instant::now()))
            });
        }
        let key = (target.endpoint.base().to_string(), target.scope.clone());
        Arc::clone(grants.entry(key).or_default())
    }

    async fn lookup(&self, target: &AuthTarget<'_>) -> Result<Option<Credential>, RegistryError> {
        let host = &target.endpoint.credential_host;
        let looking = self.credentials.lookup(host, Some(target.reference));
        tokio::time::timeout(LOOKUP_LIMIT, looking)
            .await
            .unwrap_or_else(|_| Err(CredentialError::new("no response in time")))
            .map_err(|source| RegistryError::Credentials {
                host: host.clone(),
                source,
            })
    }
}

fn made(header: Option<HeaderValue>, secret: String, lifetime: Duration) -> Option<Grant> {
    let now = Instant::now();
    Some(Grant {
        authorization: Authorization {
            header: header?,
            secret,
            cached: false,
        },
        // A lifetime that the clock cannot represent counts as an hour.
        until: now
            .checked_add(lifetime)
            .unwrap_or(now + Duration::from_secs(3600)),
    })
}

/// Merges two lists of scopes, each scope once.
fn united(ours: &str, theirs: &str) -> String {
    let mut all: Vec<&str> = Vec::new();
    for scope in ours.split(' ').chain(theirs.split(' ')) {
        if !scope.is_empty() && !all.contains(&scope) {
            all.push(scope);
        }
    }
    all.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_united_without_repeats() {
        assert_eq!(united("a:b:pull", "a:b:pull c:d:pull"), "a:b:pull c:d:pull");
        assert_eq!(united("a", ""), "a");
    }
}
