//! Manifests: the descriptor behind a tag or digest, and the bytes.

use std::fmt;

use bytes::Bytes;
use futures::FutureExt;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue};
use serde::Deserialize;
use soci_oci::{Descriptor, Digest, Reference};
use url::Url;

use crate::auth::AuthTarget;
use crate::endpoint::{Endpoint, Need};
use crate::engine::Engine;
use crate::exists::head_refused;
use crate::request::RequestSpec;
use crate::response::Incoming;
use crate::{ProtocolViolation, RegistryError};

/// The digest of a response's content, as registries state it.
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// The tag or digest by which a manifest is requested.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManifestKey {
    /// A tag.
    Tag(String),
    /// A digest, which the response must match.
    Digest(Digest),
}

impl From<Digest> for ManifestKey {
    fn from(digest: Digest) -> Self {
        Self::Digest(digest)
    }
}

impl From<&str> for ManifestKey {
    fn from(tag: &str) -> Self {
        Self::Tag(tag.to_owned())
    }
}

impl From<&Reference> for ManifestKey {
    fn from(reference: &Reference) -> Self {
        match reference.digest() {
            Some(digest) => Self::Digest(digest),
            None => Self::Tag(reference.manifest_key()),
        }
    }
}

impl ManifestKey {
    /// What a server must be trusted with.
    const fn need(&self) -> Need {
        match self {
            Self::Tag(_) => Need::Resolve,
            Self::Digest(_) => Need::Pull,
        }
    }
}

impl fmt::Display for ManifestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => write!(f, "{digest}"),
        }
    }
}

/// `Accept` of manifest requests: everything that we can read.
pub(crate) fn accept() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(
        ACCEPT,
        HeaderValue::from_static(
            "application/vnd.oci.image.index.v1+json, \
             application/vnd.oci.image.manifest.v1+json, \
             application/vnd.docker.distribution.manifest.list.v2+json, \
             application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1",
        ),
    );
    headers
}

/// Resolves a reference to the descriptor of its manifest.
pub(crate) async fn resolve(
    engine: &Engine,
    reference: &Reference,
) -> Result<Descriptor, RegistryError> {
    let key = &ManifestKey::from(reference);
    engine
        .read(reference.registry(), key.need(), |endpoint| {
            async move {
                match head(engine, &endpoint, reference, key).await {
                    Ok(Some(descriptor)) => Ok(descriptor),
                    Err(error) if !head_refused(&error) => Err(error),
                    // HEAD is refused, or its response is incomplete: GET is not.
                    Ok(None) | Err(_) => {
                        let (descriptor, _) = get(engine, &endpoint, reference, key).await?;
                        Ok(descriptor)
                    }
                }
            }
            .boxed()
        })
        .await
}

/// Fetches a manifest; verified if `key` is a digest.
pub(crate) async fn fetch(
    engine: &Engine,
    reference: &Reference,
    key: &ManifestKey,
) -> Result<(Descriptor, Bytes), RegistryError> {
    engine
        .read(reference.registry(), key.need(), |endpoint| {
            async move { get(engine, &endpoint, reference, key).await }.boxed()
        })
        .await
}

async fn request(
    engine: &Engine,
    endpoint: &Endpoint,
    reference: &Reference,
    key: &ManifestKey,
    spec: fn(Url, HeaderMap) -> RequestSpec<'static>,
) -> Result<Incoming, RegistryError> {
    let url = endpoint.url(reference.repository(), &["manifests", &key.to_string()]);
    let target = AuthTarget::pull(endpoint, reference);
    engine.exchange(&target, spec(url, accept())).await
}

/// Returns the descriptor from the response to HEAD; `None` if the response is incomplete.
async fn head(
    engine: &Engine,
    endpoint: &Endpoint,
    reference: &Reference,
    key: &ManifestKey,
) -> Result<Option<Descriptor>, RegistryError> {
    let response = request(engine, endpoint, reference, key, RequestSpec::head).await?;
    let digest = match (key, content_digest(&response)) {
        (ManifestKey::Digest(digest), stated) => {
            check_digest(&response, *digest, stated.unwrap_or(*digest))?;
            *digest
        }
        (ManifestKey::Tag(_), Some(digest)) => digest,
        (ManifestKey::Tag(_), None) => return Ok(None),
    };
    let media_type = content_type(&response).filter(|media_type| is_specific(media_type));
    Ok(match (media_type, response.content_length()) {
        (Some(media_type), Some(size)) if size > 0 => {
            Some(Descriptor::new(media_type, digest, size))
        }
        _ => None,
    })
}

async fn get(
    engine: &Engine,
    endpoint: &Endpoint,
    reference: &Reference,
    key: &ManifestKey,
) -> Result<(Descriptor, Bytes), RegistryError> {
    let response = request(engine, endpoint, reference, key, RequestSpec::get).await?;
    let expected = match key {
        ManifestKey::Digest(digest) => Some(*digest),
        ManifestKey::Tag(_) => content_digest(&response),
    };
    let what = response.line().to_string();
    refuse_page(&response)?;
    let media_type = content_type(&response).filter(|media_type| is_specific(media_type));
    let bytes = response.bytes(engine.config().max_manifest_size).await?;
    let actual = Digest::of(&bytes);
    if let Some(expected) = expected.filter(|expected| *expected != actual) {
        return Err(RegistryError::DigestMismatch {
            what,
            expected,
            actual,
        });
    }
    let media_type = media_type.unwrap_or_else(|| own_media_type(&bytes));
    let descriptor = Descriptor::new(media_type, actual, bytes.len() as u64);
    Ok((descriptor, bytes))
}

/// Compares the digest that a response states with the expected one.
pub(crate) fn check_digest(
    response: &Incoming,
    expected: Digest,
    actual: Digest,
) -> Result<(), RegistryError> {
    if expected == actual {
        return Ok(());
    }
    Err(RegistryError::DigestMismatch {
        what: response.line().to_string(),
        expected,
        actual,
    })
}

/// The digest that a response states for its content.
pub(crate) fn content_digest(response: &Incoming) -> Option<Digest> {
    response.header(CONTENT_DIGEST)?.parse().ok()
}

/// Refuses a page for people, with which proxies and portals answer in place of the requested manifest.
pub(crate) fn refuse_page(response: &Incoming) -> Result<(), RegistryError> {
    if content_type(response).as_deref() != Some("text/html") {
        return Ok(());
    }
    Err(RegistryError::Protocol {
        request: response.line().clone(),
        source: ProtocolViolation::Page,
    })
}

/// The media type without parameters such as `charset`.
fn content_type(response: &Incoming) -> Option<String> {
    let value = response.header(CONTENT_TYPE)?;
    let bare = value.split(';').next().unwrap_or_default().trim();
    (!bare.is_empty()).then(|| bare.to_owned())
}

/// Whether a media type says more than that the content is JSON, text or bytes.
fn is_specific(media_type: &str) -> bool {
    !matches!(
        media_type,
        "application/json" | "text/plain" | "text/html" | "application/octet-stream"
    )
}

/// The `mediaType` field of a manifest.
fn own_media_type(bytes: &[u8]) -> String {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Typed {
        #[serde(default)]
        media_type: String,
    }
    serde_json::from_slice::<Typed>(bytes)
        .map(|typed| typed.media_type)
        .unwrap_or_default()
}
