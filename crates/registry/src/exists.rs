//! Whether a registry has an object: HEAD, or GET where HEAD is refused.

use futures::FutureExt;
use http::header::RANGE;
use http::{HeaderMap, HeaderValue};
use soci_oci::Reference;

use crate::RegistryError;
use crate::auth::AuthTarget;
use crate::engine::Engine;
use crate::request::RequestSpec;

/// Asks the origin of `reference` for the object at `path` in the repository.
pub(crate) async fn exists(
    engine: &Engine,
    reference: &Reference,
    path: &[&str],
    headers: &HeaderMap,
) -> Result<bool, RegistryError> {
    let endpoint = engine.origin(reference.registry()).await?;
    let target = AuthTarget::pull(&endpoint, reference);
    let url = endpoint.url(reference.repository(), path);
    let (target, url) = (&target, &url);
    engine
        .retry(engine.document_deadline(), move || {
            async move {
                let head = RequestSpec::head(url.clone(), headers.clone());
                let mut response = engine.exchange(target, head).await;
                if let Err(error) = &response
                    && head_refused(error)
                {
                    // Some registries and proxies know GET only: then for one byte.
                    let mut headers = headers.clone();
                    headers.insert(RANGE, HeaderValue::from_static("bytes=0-0"));
                    let get = RequestSpec::get(url.clone(), headers);
                    response = engine.exchange(target, get).await;
                }
                match response {
                    Ok(_) => Ok(true),
                    Err(error) if error.is_not_found() => Ok(false),
                    // The range of an empty blob cannot be satisfied, but the blob exists.
                    Err(error) if error.status() == Some(416) => Ok(true),
                    Err(error) => Err(error),
                }
            }
            .boxed()
        })
        .await
}

/// Whether an error in response to HEAD may be about the method rather than the object.
pub(crate) fn head_refused(error: &RegistryError) -> bool {
    matches!(error.status(), Some(400 | 403 | 405 | 406 | 415 | 501))
}
