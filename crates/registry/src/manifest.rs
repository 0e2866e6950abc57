//! Manifests: what a tag or digest stands for, and its bytes.

use std::fmt;

use bytes::Bytes;
use futures::FutureExt;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue};
use serde::Deserialize;
use soci_oci::{Descriptor, Digest, Reference};
use url::Url;

use crate::auth::Purpose;
use crate::client::head_refused;
use crate::endpoint::Endpoint;
use crate::exchange::{Ask, Shared, pull_scope};
use crate::response::Incoming;
use crate::{Client, RegistryError};

/// Where registries say the digest of what they send.
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// What a manifest is asked for by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManifestKey {
    /// A tag.
    Tag(String),
    /// A digest, which the answer must match.
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

impl fmt::Display for ManifestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => write!(f, "{digest}"),
        }
    }
}

/// `Accept` for everything that we can make sense of.
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

impl Client {
    /// The descriptor of what a reference names: media type, digest, size.
    ///
    /// # Errors
    /// It does not exist, or no endpoint gives it.
    pub async fn resolve(&self, reference: &Reference) -> Result<Descriptor, RegistryError> {
        let key = ManifestKey::from(reference);
        self.shared
            .read(reference.registry(), |endpoint| {
                let key = &key;
                async move {
                    let head = head(&self.shared, &endpoint, reference, key).await;
                    match head {
                        Ok(Some(descriptor)) => Ok(descriptor),
                        Err(error) if !head_refused(&error) => Err(error),
                        // HEAD is refused, or its answer does not say all: GET does.
                        Ok(None) | Err(_) => {
                            let (descriptor, _) =
                                get(&self.shared, &endpoint, reference, key).await?;
                            Ok(descriptor)
                        }
                    }
                }
                .boxed()
            })
            .await
    }

    /// A manifest and its bytes, verified when asked for by digest. Its size is limited by
    /// [`crate::ClientConfig::max_manifest_size`].
    ///
    /// # Errors
    /// It does not exist, is too large, or is not what its digest says.
    pub async fn manifest(
        &self,
        reference: &Reference,
        key: impl Into<ManifestKey> + Send,
    ) -> Result<(Descriptor, Bytes), RegistryError> {
        let key = key.into();
        self.shared
            .read(reference.registry(), |endpoint| {
                let key = &key;
                async move { get(&self.shared, &endpoint, reference, key).await }.boxed()
            })
            .await
    }
}

async fn ask(
    shared: &Shared,
    endpoint: &Endpoint,
    reference: &Reference,
    key: &ManifestKey,
    how: fn(Url, HeaderMap) -> Ask<'static>,
) -> Result<Incoming, RegistryError> {
    let scope = pull_scope(reference.repository());
    let purpose = Purpose {
        endpoint,
        reference,
        scope: &scope,
    };
    let url = endpoint.url(reference.repository(), &["manifests", &key.to_string()]);
    shared.exchange(purpose, how(url, accept())).await
}

/// What HEAD tells; `None` if that is not everything.
async fn head(
    shared: &Shared,
    endpoint: &Endpoint,
    reference: &Reference,
    key: &ManifestKey,
) -> Result<Option<Descriptor>, RegistryError> {
    let response = ask(shared, endpoint, reference, key, Ask::head).await?;
    let digest = match (key, said_digest(&response)) {
        (ManifestKey::Digest(digest), said) => {
            check(&response, *digest, said.unwrap_or(*digest))?;
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
    shared: &Shared,
    endpoint: &Endpoint,
    reference: &Reference,
    key: &ManifestKey,
) -> Result<(Descriptor, Bytes), RegistryError> {
    let response = ask(shared, endpoint, reference, key, Ask::get).await?;
    let expected = match key {
        ManifestKey::Digest(digest) => Some(*digest),
        ManifestKey::Tag(_) => said_digest(&response),
    };
    let what = response.line().to_string();
    let media_type = content_type(&response).filter(|media_type| is_specific(media_type));
    let bytes = response.bytes(shared.config().max_manifest_size).await?;
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

fn check(response: &Incoming, expected: Digest, actual: Digest) -> Result<(), RegistryError> {
    if expected == actual {
        return Ok(());
    }
    Err(RegistryError::DigestMismatch {
        what: response.line().to_string(),
        expected,
        actual,
    })
}

pub(crate) fn said_digest(response: &Incoming) -> Option<Digest> {
    response.header(CONTENT_DIGEST)?.parse().ok()
}

/// The media type without parameters such as `charset`.
pub(crate) fn content_type(response: &Incoming) -> Option<String> {
    let value = response.header(CONTENT_TYPE)?;
    let bare = value.split(';').next().unwrap_or_default().trim();
    (!bare.is_empty()).then(|| bare.to_owned())
}

/// Some servers say no more than that it is JSON, text or bytes.
fn is_specific(media_type: &str) -> bool {
    !matches!(
        media_type,
        "application/json" | "text/plain" | "text/html" | "application/octet-stream"
    )
}

/// The media type that the manifest gives itself.
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
