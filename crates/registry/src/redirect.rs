//! Redirects: no other host than the first ever sees the `Authorization` header.

use http::header::LOCATION;
use http::{HeaderValue, Method};
use url::Url;

use crate::endpoint::Endpoint;
use crate::request::RequestSpec;
use crate::response::Incoming;
use crate::transport::Transport;
use crate::{Misdirection, ProtocolViolation, RegistryError};

/// Most hops; more are taken for a loop.
const MAX_HOPS: usize = 8;

/// Sends a request and follows its redirects. `authorization` goes to the first host only.
pub(crate) async fn send_following(
    transport: &Transport,
    endpoint: &Endpoint,
    mut spec: RequestSpec<'_>,
    authorization: Option<&HeaderValue>,
) -> Result<Incoming, RegistryError> {
    let home = spec.url.origin();
    for _ in 0..=MAX_HOPS {
        let at_home = spec.url.origin() == home;
        let response = transport
            .send(endpoint, &spec, authorization.filter(|_| at_home))
            .await?;
        let follow = match response.status().as_u16() {
            // These keep the method and the body; the others become GET.
            307 | 308 => true,
            301..=303 => matches!(spec.method, Method::GET | Method::HEAD),
            _ => false,
        };
        if !follow {
            return Ok(response);
        }
        (spec.url, spec.reach) = (location(&response)?, response.names());
        if response.url().scheme() == "https" && spec.url.scheme() == "http" {
            allow_downgrade(transport, endpoint, &response)?;
        }
        response.drain().await;
    }
    Err(RegistryError::Protocol {
        request: spec.line(endpoint),
        source: ProtocolViolation::TooManyRedirects(MAX_HOPS),
    })
}

/// Refuses to leave TLS: the content is checked, but others on the way would see it. A registry that
/// is reached without TLS, or without verification, has not promised that.
fn allow_downgrade(
    transport: &Transport,
    endpoint: &Endpoint,
    response: &Incoming,
) -> Result<(), RegistryError> {
    let secure = endpoint.base().scheme() == "https" && !endpoint.tls.skip_verify;
    if !secure || transport.config().plain_http_redirects {
        return Ok(());
    }
    Err(RegistryError::Misdirected {
        request: response.line().clone(),
        source: Misdirection::RedirectWithoutTls,
    })
}

/// Returns the `Location` of a response, absolute or relative to the request's URL.
pub(crate) fn location(response: &Incoming) -> Result<Url, RegistryError> {
    let protocol = |source| RegistryError::Protocol {
        request: response.line().clone(),
        source,
    };
    let text = response
        .header(LOCATION)
        .ok_or_else(|| protocol(ProtocolViolation::NoLocation))?;
    let url = response
        .url()
        .join(text)
        .map_err(|_| protocol(ProtocolViolation::InvalidLocation))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(protocol(ProtocolViolation::LocationNotHttp));
    }
    Ok(url)
}
