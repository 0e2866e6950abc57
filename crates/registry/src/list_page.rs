//! A page of a list that a registry sends in parts (OCI distribution specification 1.1, "Listing
//! Tags" and "Listing Referrers").

use std::sync::Arc;

use http::header::LINK;
use serde::de::DeserializeOwned;
use url::Url;

use crate::auth::AuthTarget;
use crate::engine::Engine;
use crate::request::RequestSpec;
use crate::{ProtocolViolation, RegistryError};

/// One page.
pub(crate) struct Page<T> {
    /// The document.
    pub(crate) list: T,
    /// The URL of the page after it, as the registry gives it: it may lead to another server.
    pub(crate) next: Option<Url>,
    /// Size of the document in bytes.
    pub(crate) size: u64,
}

/// Requests a page of at most `limit` bytes. `malformed` says what a document is that cannot be read.
pub(crate) async fn page<T: DeserializeOwned>(
    engine: &Engine,
    target: &AuthTarget<'_>,
    spec: RequestSpec<'_>,
    limit: u64,
    malformed: &str,
) -> Result<Page<T>, RegistryError> {
    let response = engine.exchange(target, spec).await?;
    let line = response.line().clone();
    let next = response
        .header(LINK)
        .and_then(next_link)
        .and_then(|next| response.url().join(next).ok());
    let bytes = response.bytes(limit).await?;
    let list = serde_json::from_slice(&bytes).map_err(|error| RegistryError::Protocol {
        request: line,
        source: ProtocolViolation::InvalidList {
            what: malformed.to_owned(),
            source: Arc::new(error),
        },
    })?;
    Ok(Page {
        list,
        next,
        size: bytes.len() as u64,
    })
}

/// The target of `<…>; rel="next"` (RFC 8288).
pub(crate) fn next_link(header: &str) -> Option<&str> {
    header.split(',').find_map(|link| {
        let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        parameters
            .split(';')
            .any(|p| matches!(p.trim(), "rel=\"next\"" | "rel=next"))
            .then_some(target)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_the_next_page_are_found() {
        assert_eq!(next_link("</v2/x?n=2>; rel=\"next\""), Some("/v2/x?n=2"));
        assert_eq!(next_link("<a>; rel=prev, <b>; rel=next"), Some("b"));
        assert_eq!(next_link("<a>; rel=prev"), None);
        assert_eq!(next_link(""), None);
    }
}
