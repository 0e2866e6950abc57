//! Referrers of a manifest: the referrers API, and the referrers tag of registries without it
//! (OCI distribution specification 1.1, "Listing Referrers" and "Referrers Tag Schema").

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::FutureExt;
use http::header::ACCEPT;
use http::{HeaderMap, HeaderValue};
use serde::Deserialize;
use soci_oci::{Descriptor, Digest, Index, Reference, media_types};
use tokio::sync::Mutex;
use url::Url;

use crate::auth::AuthTarget;
use crate::endpoint::{Endpoint, Need};
use crate::engine::Engine;
use crate::list_page::{self, Page};
use crate::request::RequestSpec;
use crate::upload::put_manifest;
use crate::{Deadline, Misconfiguration, RegistryError};

/// Largest list of referrers in bytes, all its pages together.
const MAX_LIST: u64 = 4 << 20;
/// Most pages of a list.
const MAX_PAGES: usize = 64;

/// Lists the manifests that refer to `subject`, of one artifact type if given.
pub(crate) async fn list(
    engine: &Engine,
    reference: &Reference,
    subject: Digest,
    artifact_type: Option<&str>,
) -> Result<Vec<Descriptor>, RegistryError> {
    let all = engine
        .read(reference.registry(), Need::Resolve, |endpoint| {
            async move {
                let api = from_api(engine, &endpoint, reference, subject, artifact_type);
                match Box::pin(api).await {
                    Ok(list) => Ok(list),
                    Err(error) if no_such_api(&error) => {
                        let tag = Box::pin(from_tag(engine, &endpoint, reference, subject));
                        Ok(tag.await?.map(|index| index.manifests).unwrap_or_default())
                    }
                    Err(error) => Err(error),
                }
            }
            .boxed()
        })
        .await?;
    // Registries may filter, but need not.
    Ok(all
        .into_iter()
        .filter(|d| artifact_type.is_none_or(|wanted| d.artifact_type.as_deref() == Some(wanted)))
        .collect())
}

/// Adds a manifest to the referrers tag of its `subject`; does nothing if it has none. `update` is
/// locked while the tag is read, changed and written.
pub(crate) async fn add_to_tag(
    engine: &Engine,
    update: &Mutex<()>,
    reference: &Reference,
    media_type: &str,
    manifest: &[u8],
) -> Result<(), RegistryError> {
    let Some((subject, referrer)) = referrer_of(media_type, manifest) else {
        return Ok(());
    };
    let _locked = update.lock().await;
    let endpoint = &engine.origin(reference.registry()).await?;
    let known = engine
        .retry(Deadline::far(), || {
            from_tag(engine, endpoint, reference, subject).boxed()
        })
        .await?;
    let mut index = known.unwrap_or_else(|| Index {
        schema_version: 2,
        media_type: media_types::OCI_INDEX.to_owned(),
        artifact_type: None,
        manifests: Vec::new(),
        subject: None,
        annotations: BTreeMap::new(),
    });
    if index.manifests.iter().any(|d| d.digest == referrer.digest) {
        return Ok(());
    }
    index.manifests.push(referrer);
    let bytes = soci_oci::json::to_vec(&index)
        .map_err(|error| Misconfiguration::Referrers(Arc::new(error)))?;
    let tag = tag_of(subject);
    put_manifest(
        engine,
        reference,
        &tag,
        media_types::OCI_INDEX,
        bytes.into(),
    )
    .await
    .map(drop)
}

/// The tag of the referrers of `subject` at registries without the API.
fn tag_of(subject: Digest) -> String {
    format!("sha256-{}", subject.hex())
}

/// Whether an error means that the registry has no referrers API.
fn no_such_api(error: &RegistryError) -> bool {
    match error {
        RegistryError::Status { status, .. } => {
            matches!(status, 400 | 404 | 405 | 406 | 410 | 415 | 501)
        }
        // The response is not a list of referrers.
        RegistryError::Protocol { .. } => true,
        _ => false,
    }
}

async fn from_api(
    engine: &Engine,
    endpoint: &Endpoint,
    reference: &Reference,
    subject: Digest,
    artifact_type: Option<&str>,
) -> Result<Vec<Descriptor>, RegistryError> {
    let mut url = endpoint.url(reference.repository(), &["referrers", &subject.to_string()]);
    if let Some(wanted) = artifact_type {
        url.query_pairs_mut().append_pair("artifactType", wanted);
    }
    let mut all = Vec::new();
    let mut left = MAX_LIST;
    for _ in 0..MAX_PAGES {
        let Page { list, next, size } =
            page(engine, endpoint, reference, url.clone(), left).await?;
        all.extend(list.manifests);
        left = left.saturating_sub(size);
        match next {
            Some(next) => url = next,
            None => return Ok(all),
        }
    }
    Err(RegistryError::TooLarge {
        what: format!("the list of referrers of {subject}"),
        limit: MAX_LIST,
    })
}

/// Fetches the index under the referrers tag; `None` if there is none.
async fn from_tag(
    engine: &Engine,
    endpoint: &Endpoint,
    reference: &Reference,
    subject: Digest,
) -> Result<Option<Index>, RegistryError> {
    let url = endpoint.url(reference.repository(), &["manifests", &tag_of(subject)]);
    match page(engine, endpoint, reference, url, MAX_LIST).await {
        Ok(page) => Ok(Some(page.list)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

async fn page(
    engine: &Engine,
    endpoint: &Endpoint,
    reference: &Reference,
    url: Url,
    limit: u64,
) -> Result<Page<Index>, RegistryError> {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static(media_types::OCI_INDEX));
    let target = AuthTarget::pull(endpoint, reference);
    let spec = RequestSpec::get(url, headers);
    let malformed = "the list of referrers is not an image index";
    list_page::page(engine, &target, spec, limit, malformed).await
}

/// Returns the subject of a manifest, and the descriptor of the manifest in a list of referrers,
/// with its artifact type (or its config's media type) and annotations.
fn referrer_of(media_type: &str, manifest: &[u8]) -> Option<(Digest, Descriptor)> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Referrer {
        subject: Option<Descriptor>,
        artifact_type: Option<String>,
        config: Option<Descriptor>,
        annotations: Option<BTreeMap<String, String>>,
    }
    let read: Referrer = serde_json::from_slice(manifest).ok()?;
    let subject = read.subject?.digest;
    let mut referrer = Descriptor::of(media_type, manifest);
    referrer.artifact_type = read
        .artifact_type
        .filter(|kind| !kind.is_empty())
        .or(read.config.map(|config| config.media_type));
    referrer.annotations = read.annotations.unwrap_or_default();
    Some((subject, referrer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_referrer_is_listed_by_its_artifact_type_or_config_type() {
        let subject = Digest::of(b"image");
        let json = format!(
            r#"{{"config":{{"mediaType":"c/t","digest":"{subject}","size":2}},
                "subject":{{"digest":"{subject}","size":5}},"annotations":{{"k":"v"}}}}"#
        );
        let (found, referrer) = referrer_of("m/t", json.as_bytes()).unwrap();
        assert_eq!(found, subject);
        assert_eq!(referrer.artifact_type.as_deref(), Some("c/t"));
        assert_eq!(referrer.annotation("k"), Some("v"));
        assert_eq!(referrer.digest, Digest::of(json.as_bytes()));
        assert!(referrer_of("m/t", b"{}").is_none());
        assert!(referrer_of("m/t", b"?").is_none());
    }
}
