//! One attempt at one endpoint, with credentials, and the order in which endpoints are asked.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use http::{HeaderMap, Method};
use parking_lot::Mutex;
use url::Url;

use crate::auth::{Authorizer, Purpose};
use crate::endpoint::{Endpoint, endpoints};
use crate::error::ErrorKind;
use crate::redirect::send_following;
use crate::response::Incoming;
use crate::retry::Backoff;
use crate::transport::{Outgoing, Payload, Transport};
use crate::{ClientConfig, Deadline, RegistryError};

/// A mirror that could not be reached is left alone for this long.
const COOL_DOWN: Duration = Duration::from_secs(30);
/// How often a request is made again with other credentials.
const RENEWALS: usize = 4;

/// What all clones of a client share.
pub(crate) struct Shared {
    pub(crate) transport: Transport,
    pub(crate) authorizer: Authorizer,
    /// Mirrors that failed, by base URL, and until when they are left alone.
    resting: Mutex<HashMap<String, Instant>>,
    /// Whether hosts honour ranges, by origin, once it is known.
    ranges: Mutex<HashMap<String, bool>>,
    retries: Arc<AtomicU64>,
    /// Updates of referrers tags, which are read-modify-write, one after another.
    pub(crate) referrers_update: tokio::sync::Mutex<()>,
}

/// A request to a registry.
pub(crate) struct Ask<'a> {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Payload<'a>,
}

impl Ask<'_> {
    pub(crate) fn get(url: Url, headers: HeaderMap) -> Self {
        Self {
            method: Method::GET,
            url,
            headers,
            payload: Payload::Empty,
        }
    }

    pub(crate) fn head(url: Url, headers: HeaderMap) -> Self {
        Self {
            method: Method::HEAD,
            ..Self::get(url, headers)
        }
    }
}

impl Shared {
    pub(crate) fn new(transport: Transport, authorizer: Authorizer) -> Self {
        Self {
            transport,
            authorizer,
            resting: Mutex::default(),
            ranges: Mutex::default(),
            retries: Arc::default(),
            referrers_update: tokio::sync::Mutex::default(),
        }
    }

    pub(crate) fn config(&self) -> &ClientConfig {
        self.transport.config()
    }

    /// The retry budget of one operation, which ends at `deadline`.
    pub(crate) fn backoff(&self, deadline: Deadline) -> Backoff {
        Backoff::new(self.config().retries, Arc::clone(&self.retries), deadline)
    }

    pub(crate) fn retry_count(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// Sends a request with what the endpoint wants as authorization, asked again with fresh
    /// credentials after a 401 (once, unless another request's were taken). Any status that is no success is an error.
    pub(crate) async fn exchange(
        &self,
        purpose: Purpose<'_>,
        ask: Ask<'_>,
    ) -> Result<Incoming, RegistryError> {
        let endpoint = purpose.endpoint;
        // An upload's Location or a remembered redirect may be on another host.
        let ours = endpoint.owns(&ask.url);
        let outgoing = Outgoing {
            method: ask.method,
            url: ask.url,
            headers: ask.headers,
            payload: ask.payload,
            endpoint,
        };
        let mut authorization = None;
        if ours {
            authorization = self.authorizer.prepare(&self.transport, purpose).await?;
        }
        let header = authorization.as_ref().map(|a| &a.header);
        let mut response = send_following(&self.transport, outgoing.clone(), header).await?;
        for _ in 0..RENEWALS {
            if !(ours && endpoint.owns(response.url())) {
                break;
            }
            let fresh = match response.status().as_u16() {
                401 => {
                    let headers = response.headers();
                    self.authorizer
                        .challenged(&self.transport, purpose, headers, authorization.as_ref())
                        .await?
                }
                // Some registries answer a password or token that has expired like this.
                403 => {
                    self.authorizer
                        .renewed(&self.transport, purpose, authorization.as_ref())
                        .await?
                }
                _ => None,
            };
            let Some(fresh) = fresh else { break };
            response.drain().await;
            response =
                send_following(&self.transport, outgoing.clone(), Some(&fresh.header)).await?;
            // What was made for this request is the last word. What another request had made
            // meanwhile may have expired like the one before.
            let last = !fresh.is_cached();
            authorization = Some(fresh);
            if last {
                break;
            }
        }
        if response.status().is_success() {
            return Ok(response);
        }
        let mut secrets = endpoint.headers.secrets();
        secrets.extend(authorization.map(|a| a.secret));
        Err(response.into_error(&secrets).await)
    }

    /// The endpoints of a registry that are worth asking now, mirrors first.
    pub(crate) fn endpoints(&self, registry: &str) -> Result<Vec<Arc<Endpoint>>, RegistryError> {
        let now = Instant::now();
        let resting = self.resting.lock();
        Ok(endpoints(self.config(), registry)?
            .into_iter()
            .filter(|endpoint| {
                !endpoint.is_mirror()
                    || resting
                        .get(endpoint.base().as_str())
                        .is_none_or(|until| *until <= now)
            })
            .map(Arc::new)
            .collect())
    }

    /// Learns from a failure: a mirror that is down, or that serves damaged data, rests.
    pub(crate) fn note_failure(&self, endpoint: &Endpoint, error: &RegistryError) {
        if !endpoint.is_mirror() {
            return;
        }
        tracing::debug!(mirror = %endpoint.credential_host, %error, "a mirror failed, asking the next");
        if matches!(
            error.kind(),
            ErrorKind::Unreachable | ErrorKind::Timeout | ErrorKind::DigestMismatch
        ) {
            self.resting
                .lock()
                .insert(endpoint.base().to_string(), Instant::now() + COOL_DOWN);
        }
    }

    /// Reads something small: from the first endpoint that gives it, again after a while when
    /// none does and it may help.
    pub(crate) async fn read<'a, T: Send>(
        &self,
        registry: &str,
        operation: impl Fn(Arc<Endpoint>) -> BoxFuture<'a, Result<T, RegistryError>> + Send + Sync,
    ) -> Result<T, RegistryError> {
        let mut backoff = self.backoff(Deadline::far());
        loop {
            let mut failure = None;
            for endpoint in self.endpoints(registry)? {
                match operation(Arc::clone(&endpoint)).await {
                    Ok(result) => return Ok(result),
                    Err(error) => {
                        self.note_failure(&endpoint, &error);
                        failure = Some(error);
                    }
                }
            }
            // The last one asked is the origin, whose word counts.
            match failure {
                Some(error) => backoff.wait_after(error).await?,
                None => {
                    return Err(RegistryError::Config(format!(
                        "registry {registry:?} has no endpoint"
                    )));
                }
            }
        }
    }

    /// Does this host honour ranges? `None`: not known yet.
    pub(crate) fn honours_ranges(&self, url: &Url) -> Option<bool> {
        self.ranges
            .lock()
            .get(&url.origin().ascii_serialization())
            .copied()
    }

    pub(crate) fn learn_ranges(&self, url: &Url, honoured: bool) {
        self.ranges
            .lock()
            .insert(url.origin().ascii_serialization(), honoured);
    }
}

/// The scope of reading a repository.
pub(crate) fn pull_scope(repository: &str) -> String {
    format!("repository:{repository}:pull")
}

/// The scope of writing to a repository.
pub(crate) fn push_scope(repository: &str) -> String {
    format!("repository:{repository}:pull,push")
}
