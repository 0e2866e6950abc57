//! The client: what it shares, and the questions that have a yes or no answer.

use std::fmt;
use std::sync::Arc;

use futures::FutureExt;
use http::header::RANGE;
use http::{HeaderMap, HeaderValue};
use soci_oci::{Descriptor, Reference};

use crate::auth::{Authorizer, Purpose};
use crate::endpoint::{Endpoint, endpoints};
use crate::exchange::{Ask, Shared, pull_scope};
use crate::transport::Transport;
use crate::{ClientConfig, Credentials, Deadline, RegistryError, RemoteBlob};

/// The registry client; clones share connections, tokens and what was learnt about hosts.
#[derive(Clone)]
pub struct Client {
    pub(crate) shared: Arc<Shared>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("user_agent", &self.shared.config().user_agent)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// A client; no request is made yet.
    ///
    /// # Errors
    /// A mirror of the configuration is not a host.
    pub fn new(
        config: ClientConfig,
        credentials: Arc<dyn Credentials>,
    ) -> Result<Self, RegistryError> {
        for registry in config.hosts.keys() {
            endpoints(&config, registry)?;
        }
        Ok(Self {
            shared: Arc::new(Shared::new(
                Transport::new(config),
                Authorizer::new(credentials),
            )),
        })
    }

    /// A blob to read in parts; no request is made yet. What is read is *not* checked against the
    /// digest: callers that read parts have digests of parts.
    #[must_use]
    pub fn blob(&self, reference: &Reference, descriptor: &Descriptor) -> RemoteBlob {
        RemoteBlob::new(
            Arc::clone(&self.shared),
            reference.clone(),
            descriptor.digest,
            descriptor.size,
        )
    }

    /// Does the repository have this blob? Mirrors are not asked.
    ///
    /// # Errors
    /// The registry does not say.
    pub async fn blob_exists(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
    ) -> Result<bool, RegistryError> {
        let digest = descriptor.digest.to_string();
        self.exists(reference, &["blobs", &digest], &HeaderMap::new())
            .await
    }

    /// Does the repository have the manifest that the reference names? Mirrors are not asked.
    ///
    /// # Errors
    /// The registry does not say.
    pub async fn manifest_exists(&self, reference: &Reference) -> Result<bool, RegistryError> {
        let key = reference.manifest_key();
        self.exists(reference, &["manifests", &key], &crate::manifest::accept())
            .await
    }

    async fn exists(
        &self,
        reference: &Reference,
        path: &[&str],
        headers: &HeaderMap,
    ) -> Result<bool, RegistryError> {
        let endpoint = self.origin(reference)?;
        let scope = pull_scope(reference.repository());
        let purpose = Purpose {
            endpoint: &endpoint,
            reference,
            scope: &scope,
        };
        let url = endpoint.url(reference.repository(), path);
        let mut backoff = self.shared.backoff(Deadline::far());
        loop {
            let head = Ask::head(url.clone(), headers.clone());
            let mut answer = self.shared.exchange(purpose, head).await.map(drop);
            if let Err(error) = &answer
                && head_refused(error)
            {
                // Some registries and proxies know GET only: then for one byte.
                let mut headers = headers.clone();
                headers.insert(RANGE, HeaderValue::from_static("bytes=0-0"));
                let get = Ask::get(url.clone(), headers);
                answer = self.shared.exchange(purpose, get).boxed().await.map(drop);
            }
            match answer {
                Ok(()) => return Ok(true),
                Err(error) if error.is_not_found() => return Ok(false),
                // The range of an empty blob cannot be satisfied, but it is there.
                Err(error) if error.status() == Some(416) => return Ok(true),
                Err(error) => backoff.wait_after(error).await?,
            }
        }
    }

    /// The registry itself, without its mirrors.
    pub(crate) fn origin(&self, reference: &Reference) -> Result<Endpoint, RegistryError> {
        crate::endpoint::origin(self.shared.config(), reference.registry())
    }
}

/// May an answer to HEAD be about HEAD rather than about the object?
pub(crate) fn head_refused(error: &RegistryError) -> bool {
    matches!(error.status(), Some(400 | 403 | 405 | 406 | 415 | 501))
}
