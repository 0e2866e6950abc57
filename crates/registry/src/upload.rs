//! Uploading blobs and manifests, always to the registry itself, never to its mirrors.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue, Method};
use soci_oci::{Descriptor, Digest, Reference};
use url::Url;

use crate::auth::Purpose;
use crate::endpoint::Endpoint;
use crate::exchange::{Ask, push_scope};
use crate::manifest::said_digest;
use crate::redirect::location;
use crate::response::Incoming;
use crate::transport::Payload;
use crate::{BlobBody, Client, Deadline, RegistryError};

/// Up to this size a blob goes in one PUT; larger ones are streamed with PATCH first, which lets
/// registries take them in without holding on to the request that commits them.
const MONOLITHIC: u64 = 8 << 20;
/// Set when the registry has entered a manifest into its referrers (distribution spec 1.1).
const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");

/// How a blob came to be at the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PushOutcome {
    /// It was transferred.
    Uploaded,
    /// It was there already.
    Exists,
    /// The registry took it from another of its repositories.
    Mounted,
}

/// What is uploaded, and by whom progress is heard.
struct Upload<'a> {
    descriptor: &'a Descriptor,
    body: BlobBody,
    progress: Option<&'a (dyn Fn(u64) + Send + Sync)>,
}

impl Client {
    /// Uploads a blob unless the registry has it. `mount_from` is another repository of the same
    /// registry that may have it. `progress` hears how many bytes of the blob have been sent in
    /// all; that falls back when an interrupted upload starts over.
    ///
    /// # Errors
    /// The registry refused it, cannot be reached, or the body cannot be read or does not have
    /// the size of the descriptor.
    pub async fn push_blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        body: BlobBody,
        mount_from: Option<&str>,
        progress: Option<&(dyn Fn(u64) + Send + Sync)>,
    ) -> Result<PushOutcome, RegistryError> {
        if Box::pin(self.blob_exists(reference, descriptor)).await? {
            return Ok(PushOutcome::Exists);
        }
        let endpoint = self.origin(reference)?;
        let mut scope = push_scope(reference.repository());
        if let Some(from) = mount_from {
            scope.push_str(&format!(" repository:{from}:pull"));
        }
        let purpose = Purpose {
            endpoint: &endpoint,
            reference,
            scope: &scope,
        };
        let upload = Upload {
            descriptor,
            body,
            progress,
        };
        let mut backoff = self.shared.backoff(Deadline::far());
        loop {
            match Box::pin(self.upload(purpose, &upload, mount_from)).await {
                Ok(outcome) => return Ok(outcome),
                // The session is lost or unknown: a new one may do.
                Err(error) => backoff.wait_after(error).await?,
            }
        }
    }

    /// One upload session.
    async fn upload(
        &self,
        purpose: Purpose<'_>,
        upload: &Upload<'_>,
        mount_from: Option<&str>,
    ) -> Result<PushOutcome, RegistryError> {
        let Purpose {
            endpoint,
            reference,
            ..
        } = purpose;
        let digest = upload.descriptor.digest;
        let size = upload.descriptor.size;
        let mut url = endpoint.url(reference.repository(), &["blobs", "uploads", ""]);
        if let Some(from) = mount_from {
            url.query_pairs_mut()
                .append_pair("mount", &digest.to_string())
                .append_pair("from", from);
        }
        let started = self
            .write(purpose, Method::POST, url, HeaderMap::new(), Payload::Empty)
            .await?;
        if started.status().as_u16() == 201 {
            return Ok(PushOutcome::Mounted);
        }
        let mut session = session(endpoint, &started)?;
        started.drain().await;
        let mut headers = HeaderMap::new();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        );
        let payload = Payload::Body {
            body: &upload.body,
            size,
            progress: upload.progress,
        };
        if size <= MONOLITHIC {
            self.write(
                purpose,
                Method::PUT,
                closing(session, digest),
                headers,
                payload,
            )
            .await?
            .drain()
            .await;
        } else {
            let sent = self
                .write(purpose, Method::PATCH, session, headers, payload)
                .await?;
            session = self::session(endpoint, &sent)?;
            sent.drain().await;
            let last = closing(session, digest);
            self.write(purpose, Method::PUT, last, HeaderMap::new(), Payload::Empty)
                .await?
                .drain()
                .await;
        }
        Ok(PushOutcome::Uploaded)
    }

    async fn write(
        &self,
        purpose: Purpose<'_>,
        method: Method,
        url: Url,
        headers: HeaderMap,
        payload: Payload<'_>,
    ) -> Result<Incoming, RegistryError> {
        let ask = Ask {
            method,
            url,
            headers,
            payload,
        };
        self.shared.exchange(purpose, ask).await
    }

    /// Uploads a manifest under the reference's digest or else its tag. When it has a `subject`
    /// and the registry does not say that it keeps referrers, the referrers tag is updated.
    ///
    /// # Errors
    /// The registry refused it or cannot be reached, or the reference's digest is another one.
    pub async fn push_manifest(
        &self,
        reference: &Reference,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<Digest, RegistryError> {
        let digest = Digest::of(&bytes);
        if let Some(wanted) = reference.digest().filter(|wanted| *wanted != digest) {
            return Err(RegistryError::Config(format!(
                "the manifest to push as {reference} has digest {digest}, not {wanted}"
            )));
        }
        let key = reference.manifest_key();
        let keeps_referrers = self
            .put_manifest(reference, &key, media_type, bytes.clone())
            .await?;
        if !keeps_referrers {
            Box::pin(self.push_referrer(reference, media_type, &bytes)).await?;
        }
        Ok(digest)
    }

    /// Returns whether the registry entered the manifest into its referrers.
    pub(crate) async fn put_manifest(
        &self,
        reference: &Reference,
        key: &str,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<bool, RegistryError> {
        let endpoint = self.origin(reference)?;
        let scope = push_scope(reference.repository());
        let purpose = Purpose {
            endpoint: &endpoint,
            reference,
            scope: &scope,
        };
        let mut headers = HeaderMap::new();
        let media_type = HeaderValue::from_str(media_type)
            .map_err(|_| RegistryError::Config(format!("media type {media_type:?}")))?;
        headers.insert(CONTENT_TYPE, media_type);
        headers.insert(CONTENT_LENGTH, HeaderValue::from(bytes.len()));
        let url = endpoint.url(reference.repository(), &["manifests", key]);
        let mut backoff = self.shared.backoff(Deadline::far());
        loop {
            let payload = Payload::Bytes(bytes.clone());
            let answer =
                Box::pin(self.write(purpose, Method::PUT, url.clone(), headers.clone(), payload))
                    .await;
            match answer {
                Ok(response) => {
                    let expected = Digest::of(&bytes);
                    if let Some(actual) = said_digest(&response).filter(|said| *said != expected) {
                        return Err(RegistryError::DigestMismatch {
                            what: response.line().to_string(),
                            expected,
                            actual,
                        });
                    }
                    let keeps = response.headers().contains_key(OCI_SUBJECT);
                    response.drain().await;
                    return Ok(keeps);
                }
                Err(error) => backoff.wait_after(error).await?,
            }
        }
    }
}

/// Where an upload goes on. A registry behind a TLS proxy may call itself by `http`.
fn session(endpoint: &Endpoint, response: &Incoming) -> Result<Url, RegistryError> {
    let mut url = location(response)?;
    let base = endpoint.base();
    if base.scheme() == "https" && url.scheme() == "http" && url.host() == base.host() {
        let port = base.port();
        if url.set_scheme("https").is_ok() {
            let _ = url.set_port(port);
        }
    }
    Ok(url)
}

/// The URL that ends an upload: what the registry put into its query stays there.
fn closing(mut session: Url, digest: Digest) -> Url {
    session
        .query_pairs_mut()
        .append_pair("digest", &digest.to_string());
    session
}
