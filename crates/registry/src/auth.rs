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
use crate::candidate_memory::{CandidateMemory, Fingerprint};
use crate::challenge::{Challenge, calls_token_invalid, choose};
use crate::endpoint::Endpoint;
use crate::reach::Reach;
use crate::response::Incoming;
use crate::token::{self, TokenRequest, basic_header, bearer_header};
use crate::transport::Transport;
use crate::{Candidate, Credential, CredentialError, Credentials, RegistryError};

/// Time after which a credential that is sent unchanged is looked up again.
const KEEP_CREDENTIAL: Duration = Duration::from_secs(60);
/// Longest wait for a source of credentials.
const LOOKUP_LIMIT: Duration = Duration::from_secs(60);
/// Most credentials that are tried for one request.
const MAX_ATTEMPTS: usize = 16;
/// Number of grants at which expired ones are removed.
const MANY_GRANTS: usize = 1024;

/// A value for the `Authorization` header.
#[derive(Clone)]
pub(crate) struct Authorization {
    pub(crate) header: HeaderValue,
    /// The secret in it, which must not appear in messages.
    pub(crate) secret: String,
    /// The credential that it was made with; `None` if it is anonymous.
    credential: Option<Fingerprint>,
    /// Whether it was kept from an earlier request and may be stale.
    cached: bool,
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
    /// Challenges by the endpoint's base URL.
    challenges: Mutex<Bounded<String, Known>>,
    /// Grants by the endpoint's base URL and scope.
    grants: Mutex<HashMap<(String, String), Slot>>,
    memory: CandidateMemory,
}

/// The credentials that were refused for one request; `None` stands for anonymous access.
#[derive(Default)]
pub(crate) struct Attempts {
    refused: Vec<Option<Fingerprint>>,
    /// Those whose new token was called invalid: each gets another one, once.
    renewed: Vec<Option<Fingerprint>>,
}

impl Attempts {
    /// Whether the credential of a new token that was refused gets another one.
    fn renews(&mut self, refused: &Authorization, response: &Incoming) -> bool {
        let again =
            calls_token_invalid(response.headers()) && !self.renewed.contains(&refused.credential);
        if again {
            self.renewed.push(refused.credential);
        }
        again
    }
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

    /// Listing the repositories of the registry of `reference`.
    pub(crate) fn catalog(endpoint: &'a Endpoint, reference: &'a Reference) -> Self {
        Self {
            endpoint,
            reference,
            scope: "registry:catalog:*".to_owned(),
        }
    }

    /// Whether it is for reading only.
    fn is_pull(&self) -> bool {
        !self.scope.contains("push")
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
            memory: CandidateMemory::default(),
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
            Some(known) => {
                let attempts = &mut Attempts::default();
                self.grant(transport, target, &known, None, attempts).await
            }
        }
    }

    /// Returns what to send after `response`, a 401 or 403 in response to `refused`; `None` if nothing
    /// is left that would help, so that the refusal is final.
    pub(crate) async fn refused(
        &self,
        transport: &Transport,
        target: &AuthTarget<'_>,
        response: &Incoming,
        refused: Option<&Authorization>,
        attempts: &mut Attempts,
    ) -> Result<Option<Authorization>, RegistryError> {
        let unauthorized = response.status().as_u16() == 401;
        let known = if unauthorized {
            self.challenge(target, response)
        } else {
            // Some registries answer an expired password or token with 403.
            let base = target.endpoint.base().as_str();
            refused.and_then(|_| self.challenges.lock().get(base).cloned())
        };
        let Some(known) = known else {
            return Ok(None);
        };
        if let Some(refused) = refused.filter(|refused| !refused.cached)
            && !attempts.renews(refused, response)
        {
            self.failed(target, refused.credential, attempts);
        }
        let mut fresh = self
            .grant(transport, target, &known, refused, attempts)
            .await?;
        if let (false, Some(same), Some(before)) = (unauthorized, &fresh, refused)
            && same.header == before.header
        {
            // What was kept has not expired: it lacks the right.
            self.failed(target, same.credential, attempts);
            fresh = self
                .grant(transport, target, &known, refused, attempts)
                .await?;
        }
        Ok(fresh)
    }

    /// Notes that a request succeeded with this authorization.
    pub(crate) fn worked(&self, target: &AuthTarget<'_>, authorization: &Authorization) {
        if let Some(credential) = authorization.credential
            && !authorization.cached
        {
            self.memory.worked(target, credential);
        }
    }

    /// Remembers the challenge of a response.
    fn challenge(&self, target: &AuthTarget<'_>, response: &Incoming) -> Option<Known> {
        let known = Known {
            challenge: choose(response.headers())?,
            reach: response.names(),
        };
        let mut remembered = known.clone();
        if let Challenge::Bearer { scope, .. } = &mut remembered.challenge {
            // The scope was for this request.
            *scope = None;
        }
        self.challenges
            .lock()
            .insert(target.endpoint.base().to_string(), remembered);
        Some(known)
    }

    fn failed(
        &self,
        target: &AuthTarget<'_>,
        credential: Option<Fingerprint>,
        attempts: &mut Attempts,
    ) {
        attempts.refused.push(credential);
        if let Some(credential) = credential {
            self.memory.refused(target, credential);
        }
    }

    async fn grant(
        &self,
        transport: &Transport,
        target: &AuthTarget<'_>,
        known: &Known,
        refused: Option<&Authorization>,
        attempts: &mut Attempts,
    ) -> Result<Option<Authorization>, RegistryError> {
        let slot = self.slot(target);
        let mut slot = slot.lock().await;
        if let Some(grant) = slot.as_ref()
            && grant.until > Instant::now()
            && refused.is_none_or(|refused| refused.header != grant.authorization.header)
            && !attempts.refused.contains(&grant.authorization.credential)
        {
            return Ok(Some(Authorization {
                cached: true,
                ..grant.authorization.clone()
            }));
        }
        *slot = None;
        let grant = self.next(transport, target, known, attempts).await?;
        let authorization = grant.as_ref().map(|grant| grant.authorization.clone());
        *slot = grant;
        Ok(authorization)
    }

    /// Makes a grant of the first candidate that has not been refused, and that the token server takes.
    /// A token without credentials comes last: wrong ones must not make public images private.
    async fn next(
        &self,
        transport: &Transport,
        target: &AuthTarget<'_>,
        known: &Known,
        attempts: &mut Attempts,
    ) -> Result<Option<Grant>, RegistryError> {
        let is_bearer = matches!(known.challenge, Challenge::Bearer { .. });
        let (candidates, mut failure) = match self.lookup(target).await {
            Ok(candidates) => (candidates, None),
            // A source that fails must not make public images private either.
            Err(error) if target.is_pull() && is_bearer => (Vec::new(), Some(error)),
            Err(error) => return Err(error),
        };
        let anonymous = candidates.is_empty() || target.is_pull();
        let mut candidates: Vec<_> = self
            .memory
            .order(target, candidates)
            .into_iter()
            .map(|(fingerprint, credential)| (Some(fingerprint), Some(credential)))
            .collect();
        if anonymous && is_bearer {
            candidates.push((None, None));
        }
        for (fingerprint, credential) in candidates {
            if attempts.refused.len() >= MAX_ATTEMPTS {
                break;
            }
            if attempts.refused.contains(&fingerprint) {
                continue;
            }
            match self.make(transport, target, known, credential).await {
                Ok(Some(mut grant)) => {
                    grant.authorization.credential = fingerprint;
                    return Ok(Some(grant));
                }
                Ok(None) => attempts.refused.push(fingerprint),
                Err(error) if matches!(error.status(), Some(400 | 401 | 403)) => {
                    self.failed(target, fingerprint, attempts);
                    failure.get_or_insert(error);
                }
                Err(error) => return Err(failure.unwrap_or(error)),
            }
        }
        failure.map_or(Ok(None), Err)
    }

    /// Makes a grant of one credential; `None` if the challenge does not take its kind.
    async fn make(
        &self,
        transport: &Transport,
        target: &AuthTarget<'_>,
        known: &Known,
        credential: Option<Credential>,
    ) -> Result<Option<Grant>, RegistryError> {
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
            source: CredentialError::Unsendable,
        })?;
        Ok(Some(grant))
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

    async fn lookup(&self, target: &AuthTarget<'_>) -> Result<Vec<Candidate>, RegistryError> {
        let host = &target.endpoint.credential_host;
        let looking = self.credentials.candidates(host, Some(target.reference));
        tokio::time::timeout(LOOKUP_LIMIT, looking)
            .await
            .unwrap_or_else(|_| Err(CredentialError::TimedOut))
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
            credential: None,
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
