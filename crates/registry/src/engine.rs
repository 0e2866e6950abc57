//! Requests to registries: one attempt at one endpoint with credentials, the order of endpoints,
//! and retries.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use futures::future::BoxFuture;

use crate::auth::{Attempts, AuthTarget, Authorizer};
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
const RENEWALS: usize = 20;

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
