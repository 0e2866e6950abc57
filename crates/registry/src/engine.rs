//! Requests to registries: one attempt at one endpoint with credentials, the order of endpoints,
//! and retries.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use futures::future::BoxFuture;

use crate::auth::{AuthTarget, Authorizer};
use crate::endpoint::{Endpoint, endpoints, origin};
use crate::mirror_cooldown::MirrorCooldown;
use crate::range_support::RangeSupport;
use crate::redirect::send_following;
use crate::request::RequestSpec;
use crate::response::Incoming;
use crate::retry::Backoff;
use crate::transport::Transport;
use crate::{ClientConfig, Deadline, RegistryError};

/// Most repetitions of a request with other credentials.
const RENEWALS: usize = 4;

/// The request engine: what all clones of a client share.
pub(crate) struct Engine {
    transport: Transport,
    authorizer: Authorizer,
    pub(crate) mirrors: MirrorCooldown,
    pub(crate) ranges: RangeSupport,
    retries: Arc<AtomicU64>,
}

impl Engine {
    pub(crate) fn new(transport: Transport, authorizer: Authorizer) -> Self {
        Self {
            transport,
            authorizer,
            mirrors: MirrorCooldown::default(),
            ranges: RangeSupport::default(),
            retries: Arc::default(),
        }
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

    /// Sends a request with the authorization that the endpoint wants. Retries once with fresh
    /// credentials after a 401; if those came from a concurrent request's cache, retries again
    /// with its own. A status that is not 2xx is an error.
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
        for _ in 0..RENEWALS {
            if !(ours && endpoint.owns(response.url())) {
                break;
            }
            let fresh = match response.status().as_u16() {
                401 => {
                    self.authorizer
                        .challenged(&self.transport, target, &response, authorization.as_ref())
                        .await?
                }
                // Some registries answer an expired password or token like this.
                403 => {
                    self.authorizer
                        .renewed(&self.transport, target, authorization.as_ref())
                        .await?
                }
                _ => None,
            };
            let Some(fresh) = fresh else { break };
            response.drain().await;
            response = send_following(&self.transport, endpoint, spec.clone(), Some(&fresh.header))
                .await?;
            // What was made for this request is final. What another request had made in the
            // meantime may have expired like the one before.
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
        Err(response.into_error(endpoint, &secrets).await)
    }

    /// The endpoints of a registry that may be asked now, mirrors first.
    pub(crate) fn endpoints(&self, registry: &str) -> Result<Vec<Arc<Endpoint>>, RegistryError> {
        let all = endpoints(self.config(), registry)?.into_iter();
        Ok(all
            .filter(|endpoint| self.mirrors.allows(endpoint))
            .map(Arc::new)
            .collect())
    }

    /// The registry itself, without its mirrors.
    pub(crate) fn origin(&self, registry: &str) -> Result<Endpoint, RegistryError> {
        origin(self.config(), registry)
    }

    /// Performs `attempt` until it succeeds, another one cannot help, or the retry budget is used
    /// up.
    pub(crate) async fn retry<'a, T: Send>(
        &self,
        mut attempt: impl FnMut() -> BoxFuture<'a, Result<T, RegistryError>> + Send,
    ) -> Result<T, RegistryError> {
        let mut backoff = self.backoff(Deadline::far());
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
        operation: impl Fn(Arc<Endpoint>) -> BoxFuture<'a, Result<T, RegistryError>> + Send + Sync,
    ) -> Result<T, RegistryError> {
        let mut backoff = self.backoff(self.document_deadline());
        loop {
            let mut failure = None;
            for endpoint in self.endpoints(registry)? {
                match operation(Arc::clone(&endpoint)).await {
                    Ok(result) => return Ok(result),
                    Err(error) => {
                        self.mirrors.note_failure(&endpoint, &error);
                        failure = Some(error);
                    }
                }
            }
            // The last endpoint is the origin: its error counts.
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
}
