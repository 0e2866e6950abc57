//! Requests to registries: one attempt at one endpoint with credentials, the order of endpoints,
//! and retries.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use futures::future::BoxFuture;
use http::{HeaderMap, Method};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::auth::{Attempts, AuthTarget, Authorizer};
use crate::bounded::Bounded;
use crate::endpoint::{Endpoint, Need, endpoints};
use crate::host_health::HostHealth;
use crate::hosts_files::HostsFiles;
use crate::range_support::RangeSupport;
use crate::redirect::send_following;
use crate::request::RequestSpec;
use crate::response::Incoming;
use crate::retry::Backoff;
use crate::transport::Transport;
use crate::{
    ClientConfig, ConnectionFailure, Deadline, Misconfiguration, RegistryError, RequestLine,
};

/// How often a request is made again whose connection broke before the response: servers close idle
/// connections, and those that have served their number of requests.
const IMMEDIATE_REPEATS: usize = 3;
/// How often as long as connections break immediately: a server that ends each after a few requests
/// breaks those of many readers several times in a row.
const QUICK_REPEATS: usize = 20;
/// The time for these.
const QUICKLY: Duration = Duration::from_millis(500);
/// Most loopback registries whose TLS is remembered.
const MAX_LOOPBACK: usize = 256;
/// Most repetitions of a request with other credentials.
const RENEWALS: usize = 20;

/// The request engine: what all clones of a client share.
pub(crate) struct Engine {
    transport: Transport,
    authorizer: Authorizer,
    pub(crate) health: HostHealth,
    hosts_files: HostsFiles,
    /// Whether loopback registries speak TLS, as far as that was tried, by their assumed base URL.
    loopback_tls: Mutex<Bounded<String, bool>>,
    pub(crate) ranges: RangeSupport,
    retries: Arc<AtomicU64>,
}

impl Engine {
    pub(crate) fn new(transport: Transport, authorizer: Authorizer) -> Self {
        Self {
            transport,
            authorizer,
            health: HostHealth::default(),
            hosts_files: HostsFiles::default(),
            loopback_tls: Mutex::new(Bounded::new(MAX_LOOPBACK)),
            ranges: RangeSupport::default(),
            retries: Arc::default(),
        }
    }

    pub(crate) const fn hosts_files(&self) -> &HostsFiles {
        &self.hosts_files
    }

    pub(crate) fn config(&self) -> &ClientConfig {
        self.transport.config()
    }

    /// The retry budget of one operation, which ends at `deadline`.
    pub(crate) fn backoff(&self, deadline: Deadline) -> Backoff {
        Backoff::new(self.config().retries, Arc::clone(&self.retries), deadline)
    }

    /// When the retries for a manifest, an index or a list end.
    pub(crate) fn document_deadline(&self) -> Deadline {
        self.config()
            .document_patience
            .map_or_else(Deadline::far, Deadline::after)
    }

    /// Sends a request with the authorization that the endpoint wants. After a 401 or 403
    /// it is repeated with fresh credentials, and with the next candidate, until one is taken. A status
    /// that is not 2xx is an error.
    pub(crate) async fn exchange(
        &self,
        target: &AuthTarget<'_>,
        spec: RequestSpec<'_>,
    ) -> Result<Incoming, RegistryError> {
        let endpoint = target.endpoint;
        // An upload's Location or a remembered redirect may be on another host.
        let ours = endpoint.owns(&spec.url);
        let mut authorization = None;
        if ours {
            authorization = self.authorizer.prepare(&self.transport, target).await?;
        }
        let header = authorization.as_ref().map(|a| &a.header);
        let mut response = send_following(&self.transport, endpoint, spec.clone(), header).await?;
        let mut attempts = Attempts::default();
        for _ in 0..RENEWALS {
            let refused = matches!(response.status().as_u16(), 401 | 403);
            if !(ours && refused && endpoint.owns(response.url())) {
                break;
            }
            let refused = authorization.as_ref();
            let next = self
                .authorizer
                .refused(&self.transport, target, &response, refused, &mut attempts)
                .await;
            let fresh = match next {
                Ok(Some(fresh)) => fresh,
                Ok(None) => break,
                // The registry's own refusal says more than that nothing else could be tried.
                Err(error) if refused.is_some() => {
                    tracing::debug!(%error, "no other credentials");
                    break;
                }
                Err(error) => return Err(error),
            };
            response.drain().await;
            response = send_following(&self.transport, endpoint, spec.clone(), Some(&fresh.header))
                .await?;
            authorization = Some(fresh);
        }
        if response.status().is_success() {
            if let Some(authorization) = &authorization {
                self.authorizer.worked(target, authorization);
            }
            return Ok(response);
        }
        let mut secrets = endpoint.headers.secrets();
        secrets.extend(authorization.map(|a| a.secret));
        Err(response.into_error(endpoint, &secrets).await)
    }

    /// The endpoints of a registry that can do what is needed, in the order in which they are asked:
    /// mirrors, the registry itself, and last the mirrors that failed lately.
    pub(crate) async fn endpoints(
        &self,
        registry: &str,
        need: Need,
    ) -> Result<Vec<Arc<Endpoint>>, RegistryError> {
        let all = self.all_endpoints(registry).await?;
        let (mut first, last): (Vec<_>, Vec<_>) = all
            .into_iter()
            .filter(|endpoint| endpoint.capabilities.include(need))
            .partition(|endpoint| self.health.prefers(endpoint));
        first.extend(last);
        if first.is_empty() {
            let registry = registry.to_owned();
            return Err(Misconfiguration::NoCapableHost { registry }.into());
        }
        Ok(first)
    }

    async fn all_endpoints(&self, registry: &str) -> Result<Vec<Arc<Endpoint>>, RegistryError> {
        let config = self.transport.config();
        if !config.hosts.contains_key(registry)
            && !config.origins.contains_key(registry)
            && let Some(found) = self.hosts_files.endpoints(config, registry).await?
        {
            return Ok(found.to_vec());
        }
        Ok(endpoints(config, registry)?
            .into_iter()
            .map(|endpoint| match endpoint.with_tls() {
                Some(secure) if self.is_known_to_speak_tls(&endpoint) == Some(true) => secure,
                _ => endpoint,
            })
            .map(Arc::new)
            .collect())
    }

    fn is_known_to_speak_tls(&self, endpoint: &Endpoint) -> Option<bool> {
        let known = self.loopback_tls.lock();
        known.get(endpoint.base().as_str()).copied()
    }

    /// Whether an error of a loopback registry comes from plain HTTP to a TLS port. Found out once; the
    /// next attempt then uses TLS.
    async fn speaks_tls(&self, endpoint: &Endpoint, error: &RegistryError) -> bool {
        let hint = error.status() == Some(400) || matches!(error, RegistryError::Dropped { .. });
        let (true, None, Some(secure)) = (
            hint,
            self.is_known_to_speak_tls(endpoint),
            endpoint.with_tls(),
        ) else {
            return false;
        };
        let spec = RequestSpec::get(secure.base().clone(), HeaderMap::new());
        let speaks = match self.transport.send(&secure, &spec, None).await {
            Ok(_) => true,
            // A certificate that is refused is one.
            Err(RegistryError::Tls { source, .. }) => !source.is_not_tls(),
            Err(_) => false,
        };
        let key = endpoint.base().to_string();
        self.loopback_tls.lock().insert(key, speaks);
        speaks
    }

    /// The server that uploads go to.
    pub(crate) async fn origin(&self, registry: &str) -> Result<Arc<Endpoint>, RegistryError> {
        let all = self.all_endpoints(registry).await?;
        all.into_iter()
            .find(|endpoint| endpoint.capabilities.push)
            .ok_or_else(|| {
                let registry = registry.to_owned();
                Misconfiguration::NoHostToPushTo { registry }.into()
            })
    }

    /// Asks one endpoint. A connection that breaks before the response is not an answer: it is made again a
    /// few times, at the same host.
    pub(crate) async fn ask<'a, T: Send>(
        &self,
        endpoint: &Endpoint,
        mut operation: impl FnMut() -> BoxFuture<'a, Result<T, RegistryError>> + Send,
    ) -> Result<T, RegistryError> {
        let began = Instant::now();
        let mut repeats = 0;
        loop {
            match operation().await {
                Ok(result) => {
                    self.health.worked(endpoint);
                    return Ok(result);
                }
                Err(RegistryError::Dropped { .. })
                    if repeats < IMMEDIATE_REPEATS
                        || repeats < QUICK_REPEATS && began.elapsed() < QUICKLY =>
                {
                    repeats += 1;
                }
                Err(error) => {
                    if self.speaks_tls(endpoint, &error).await {
                        return Err(RegistryError::Dropped {
                            request: RequestLine::new(
                                &Method::GET,
                                endpoint.base(),
                                &endpoint.credential_host,
                            ),
                            source: ConnectionFailure::SpeaksTls,
                        });
                    }
                    self.health.failed(endpoint, &error);
                    return Err(error);
                }
            }
        }
    }

    /// Performs `attempt` until it succeeds, another one cannot help, the retry budget is used up, or
    /// its next one would begin after `deadline`.
    pub(crate) async fn retry<'a, T: Send>(
        &self,
        deadline: Deadline,
        mut attempt: impl FnMut() -> BoxFuture<'a, Result<T, RegistryError>> + Send,
    ) -> Result<T, RegistryError> {
        let mut backoff = self.backoff(deadline);
        loop {
            match attempt().await {
                Ok(result) => return Ok(result),
                Err(error) => backoff.wait_after(error).await?,
            }
        }
    }

    /// Performs a small read at the first endpoint at which it succeeds, with retries when it
    /// fails at all of them.
    pub(crate) async fn read<'a, T: Send>(
        &self,
        registry: &str,
        need: Need,
        operation: impl Fn(Arc<Endpoint>) -> BoxFuture<'a, Result<T, RegistryError>> + Send + Sync,
    ) -> Result<T, RegistryError> {
        let mut backoff = self.backoff(self.document_deadline());
        loop {
            let mut failure = None;
            for endpoint in self.endpoints(registry, need).await? {
                match self
                    .ask(&endpoint, || operation(Arc::clone(&endpoint)))
                    .await
                {
                    Ok(result) => return Ok(result),
                    Err(error) => {
                        if note(&mut failure, &endpoint, error) {
                            break;
                        }
                    }
                }
            }
            match failure {
                Some((error, _)) => backoff.wait_after(error).await?,
                None => {
                    let registry = registry.to_owned();
                    return Err(Misconfiguration::NoEndpoint { registry }.into());
                }
            }
        }
    }
}

/// The error that counts of those of several endpoints, and whether it is the registry's own, which
/// counts before those of mirrors. Where the registry gave no answer, a mirror's error counts after
/// which the same request may succeed.
pub(crate) type Failure = Option<(RegistryError, bool)>;

/// Adds the failure of an endpoint. Returns whether no other endpoint need be asked: the registry
/// itself answered that it does not have the object, or that the request is wrong.
pub(crate) fn note(failure: &mut Failure, endpoint: &Endpoint, error: RegistryError) -> bool {
    let own = !endpoint.is_mirror();
    let transient = error.is_transient();
    let unanswered = is_unanswered(&error);
    // A mirror may deliver what the registry refuses to this node.
    let last = own && !transient && !unanswered && !matches!(error.status(), Some(401 | 403));
    let counts = match failure {
        // The registry could not be reached, and never may; the mirror may deliver a moment later.
        Some((counted, _)) if own => !(unanswered && counted.is_transient()),
        Some((counted, true)) => transient && is_unanswered(counted),
        Some((_, false)) | None => true,
    };
    if counts {
        *failure = Some((error, own));
    } else {
        tracing::debug!(host = %endpoint.base(), %error, "host failed");
    }
    last
}

/// Whether a request did not reach the registry, for a reason that does not pass by itself.
const fn is_unanswered(error: &RegistryError) -> bool {
    matches!(
        error,
        RegistryError::Tls { .. } | RegistryError::Credentials { .. }
    )
}
