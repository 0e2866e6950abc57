//! Uploading blobs and manifests, always to the registry itself, never to its mirrors.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue, Method};
use soci_oci::{Descriptor, Digest, Reference};
use url::Url;

use crate::auth::AuthTarget;
use crate::endpoint::Endpoint;
use crate::engine::Engine;
use crate::manifest::{check_digest, content_digest};
use crate::reach::Reach;
use crate::redirect::location;
use crate::request::{Payload, Progress, RequestSpec};
use crate::response::Incoming;
use crate::{BlobBody, Deadline, Misconfiguration, RegistryError};

/// Largest blob, in bytes, that is sent in one PUT. Larger ones are streamed with PATCH first:
/// registries can store the bytes before the request that commits them.
const MONOLITHIC: u64 = 8 << 20;
/// Header of a registry that lists the manifest among its referrers (distribution spec 1.1).
const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");

/// How a pushed blob reached the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PushOutcome {
    /// It was transferred.
    Uploaded,
    /// The registry had it already.
    Exists,
    /// The registry mounted it from another repository.
    Mounted,
}

/// A blob to upload.
pub(crate) struct BlobUpload<'a> {
    pub(crate) descriptor: &'a Descriptor,
    pub(crate) body: BlobBody,
    /// Another repository of the registry that may have the blob.
    pub(crate) mount_from: Option<&'a str>,
    pub(crate) progress: Option<Progress<'a>>,
}

/// Uploads a blob that the registry does not have.
pub(crate) async fn push_blob(
    engine: &Engine,
    reference: &Reference,
    upload: &BlobUpload<'_>,
) -> Result<PushOutcome, RegistryError> {
    let endpoint = engine.origin(reference.registry()).await?;
    let mut target = AuthTarget::push(&endpoint, reference);
    if let Some(from) = upload.mount_from {
        target = target.and_pull(from);
    }
    // A retry begins a new session: the old one may be lost or unknown.
    engine
        .retry(Deadline::far(), || {
            run_session(engine, &target, upload).boxed()
        })
        .await
}

/// Runs one upload session.
async fn run_session(
    engine: &Engine,
    target: &AuthTarget<'_>,
    upload: &BlobUpload<'_>,
) -> Result<PushOutcome, RegistryError> {
    let AuthTarget {
        endpoint,
        reference,
        ..
    } = target;
    let digest = upload.descriptor.digest;
    let size = upload.descriptor.size;
    let write = async |method, (url, reach), headers, payload| {
        let spec = RequestSpec {
            method,
            url,
            headers,
            payload,
            reach,
        };
        engine.exchange(target, spec).await
    };
    let mut url = endpoint.url(reference.repository(), &["blobs", "uploads", ""]);
    if let Some(from) = upload.mount_from {
        url.query_pairs_mut()
            .append_pair("mount", &digest.to_string())
            .append_pair("from", from);
    }
    let start = (url, Reach::Anywhere);
    let started = write(Method::POST, start, HeaderMap::new(), Payload::Empty).await?;
    if started.status().as_u16() == 201 {
        return Ok(PushOutcome::Mounted);
    }
    let session = session_url(endpoint, &started)?;
    started.drain().await;
    let mut headers = HeaderMap::new();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    let payload = Payload::Blob {
        body: &upload.body,
        size,
        progress: upload.progress,
    };
    let last = if size <= MONOLITHIC {
        write(Method::PUT, commit_url(session, digest), headers, payload).await?
    } else {
        let sent = write(Method::PATCH, session, headers, payload).await?;
        let session = session_url(endpoint, &sent)?;
        sent.drain().await;
        let session = commit_url(session, digest);
        write(Method::PUT, session, HeaderMap::new(), Payload::Empty).await?
    };
    last.drain().await;
    Ok(PushOutcome::Uploaded)
}

/// Waits for a registry that does not see a blob of a manifest, which was uploaded or seen before: another
/// client may be uploading the same one, during which distribution's registry does not see it.
const UNKNOWN_BLOB_WAITS: [Duration; 5] = [
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_millis(600),
    Duration::from_secs(1),
    Duration::from_secs(2),
];

/// Uploads a manifest under a tag or digest. Returns whether the registry added it to its
/// referrers.
pub(crate) async fn put_manifest(
    engine: &Engine,
    reference: &Reference,
    key: &str,
    media_type: &str,
    bytes: Bytes,
) -> Result<bool, RegistryError> {
    let endpoint = engine.origin(reference.registry()).await?;
    let target = &AuthTarget::push(&endpoint, reference);
    let mut headers = HeaderMap::new();
    let content_type =
        HeaderValue::from_str(media_type).map_err(|error| Misconfiguration::MediaType {
            media_type: media_type.to_owned(),
            source: Arc::new(error),
        })?;
    headers.insert(CONTENT_TYPE, content_type);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(bytes.len()));
    let spec = RequestSpec {
        method: Method::PUT,
        url: endpoint.url(reference.repository(), &["manifests", key]),
        headers,
        payload: Payload::Bytes(bytes.clone()),
        reach: Reach::Anywhere,
    };
    let mut waits = UNKNOWN_BLOB_WAITS.iter();
    let response = loop {
        let exchange = || engine.exchange(target, spec.clone()).boxed();
        match engine.retry(Deadline::far(), exchange).await {
            Ok(response) => break response,
            Err(error) => match waits.next().filter(|_| error.is_unknown_blob()) {
                Some(wait) => {
                    tracing::debug!(%error, "the registry does not see a blob yet");
                    tokio::time::sleep(*wait).await;
                }
                None => return Err(error),
            },
        }
    };
    if let Some(actual) = content_digest(&response) {
        check_digest(&response, Digest::of(&bytes), actual)?;
    }
    let listed = response.headers().contains_key(OCI_SUBJECT);
    response.drain().await;
    Ok(listed)
}

/// The URL of the next request of an upload. A registry behind a TLS proxy may name itself by
/// `http`.
fn session_url(endpoint: &Endpoint, response: &Incoming) -> Result<(Url, Reach), RegistryError> {
    let mut url = location(response)?;
    let base = endpoint.base();
    if base.scheme() == "https" && url.scheme() == "http" && url.host() == base.host() {
        let port = base.port();
        if url.set_scheme("https").is_ok() {
            let _ = url.set_port(port);
        }
    }
    Ok((url, response.names()))
}

/// The URL that commits an upload, with the query that the registry gave it.
fn commit_url((mut session, reach): (Url, Reach), digest: Digest) -> (Url, Reach) {
    session
        .query_pairs_mut()
        .append_pair("digest", &digest.to_string());
    (session, reach)
}
