//! Lists of names: the tags of a repository, the repositories of a registry (OCI distribution
//! specification 1.1, "Listing Tags"; distribution documentation, "Listing repositories").

use futures::FutureExt;
use http::HeaderMap;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use soci_oci::Reference;
use url::Url;

use crate::RegistryError;
use crate::auth::AuthTarget;
use crate::endpoint::Endpoint;
use crate::engine::Engine;
use crate::list_page::{self, Page};
use crate::request::RequestSpec;

/// Largest list in bytes, all its pages together.
const MAX_LIST: u64 = 64 << 20;
/// Most pages of a list.
const MAX_PAGES: usize = 10_000;
/// Names on a page that we request.
const PAGE: &str = "1000";

#[derive(Deserialize)]
struct Tags {
    tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Catalog {
    repositories: Option<Vec<String>>,
}

/// Lists the tags of a repository.
pub(crate) async fn tags(
    engine: &Engine,
    reference: &Reference,
) -> Result<Vec<String>, RegistryError> {
    let endpoint = engine.origin(reference.registry()).await?;
    let target = AuthTarget::pull(&endpoint, reference);
    let url = endpoint.url(reference.repository(), &["tags", "list"]);
    let of = |page: Tags| page.tags.unwrap_or_default();
    all(engine, &endpoint, &target, url, "tags", of).await
}

/// Lists the repositories of the registry of `reference`.
pub(crate) async fn repositories(
    engine: &Engine,
    reference: &Reference,
) -> Result<Vec<String>, RegistryError> {
    let endpoint = engine.origin(reference.registry()).await?;
    let target = AuthTarget::catalog(&endpoint, reference);
    let url = endpoint.url("_catalog", &[]);
    let of = |page: Catalog| page.repositories.unwrap_or_default();
    all(engine, &endpoint, &target, url, "repositories", of).await
}

async fn all<T: DeserializeOwned + Send>(
    engine: &Engine,
    endpoint: &Endpoint,
    target: &AuthTarget<'_>,
    mut url: Url,
    what: &'static str,
    names: impl Fn(T) -> Vec<String> + Send + Sync,
) -> Result<Vec<String>, RegistryError> {
    url.query_pairs_mut().append_pair("n", PAGE);
    let mut all = Vec::new();
    let malformed = format!("the list of {what} cannot be read");
    let mut left = MAX_LIST;
    for _ in 0..MAX_PAGES {
        let (this, malformed) = (&url, &malformed);
        let page = || {
            let spec = RequestSpec::get(this.clone(), HeaderMap::new());
            list_page::page::<T>(engine, target, spec, left, malformed).boxed()
        };
        let Page { list, next, size } = engine.retry(engine.document_deadline(), page).await?;
        all.extend(names(list));
        left = left.saturating_sub(size);
        match next {
            // A link to another server would have our credentials sent there.
            Some(next) if endpoint.owns(&next) && next != url => url = next,
            _ => return Ok(all),
        }
    }
    Err(RegistryError::TooLarge {
        what: format!("the list of {what}"),
        limit: MAX_LIST,
    })
}
