//! Access tokens from token servers (distribution's token and OAuth2 specifications).

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method};
use serde::Deserialize;
use url::Url;

use crate::endpoint::{Endpoint, is_loopback};
use crate::reach::Reach;
use crate::redirect::send_following;
use crate::request::{Payload, RequestSpec};
use crate::transport::Transport;
use crate::{Credential, Misconfiguration, ProtocolViolation, RegistryError, RequestLine};

/// Largest response of a token server, in bytes.
const MAX_ANSWER: u64 = 512 << 10;
/// Our name for OAuth2 token servers.
const CLIENT_ID: &str = "soci-rs";

/// The token to request.
pub(crate) struct TokenRequest<'a> {
    pub(crate) realm: &'a str,
    pub(crate) service: Option<&'a str>,
    /// Scopes separated by spaces.
    pub(crate) scope: &'a str,
    /// How far the realm may lead.
    pub(crate) reach: Reach,
}

/// An access token and its lifetime.
pub(crate) struct Token {
    pub(crate) secret: String,
    pub(crate) lifetime: Duration,
}

#[derive(Deserialize)]
struct TokenResponse {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    /// Seconds; the specification's default is 60.
    #[serde(default)]
    expires_in: Option<u64>,
}

/// Requests a token: with user and password or anonymously by GET, with an identity token by POST.
pub(crate) async fn fetch(
    transport: &Transport,
    endpoint: &Endpoint,
    wanted: &TokenRequest<'_>,
    credential: Option<&Credential>,
) -> Result<Token, RegistryError> {
    let realm = realm_url(endpoint, wanted.realm, credential.is_some())?;
    match credential {
        Some(Credential::IdentityToken(secret)) => {
            let grant = [("grant_type", "refresh_token"), ("refresh_token", secret)];
            post(transport, endpoint, realm, wanted, &grant, secret).await
        }
        Some(Credential::Basic { user, password }) => {
            match get(
                transport,
                endpoint,
                realm.clone(),
                wanted,
                Some((user, password)),
            )
            .await
            {
                // A token server that speaks OAuth2 only.
                Err(error) if error.status() == Some(405) => {
                    let grant = [
                        ("grant_type", "password"),
                        ("username", user.as_str()),
                        ("password", password.as_str()),
                    ];
                    post(transport, endpoint, realm, wanted, &grant, password).await
                }
                other => other,
            }
        }
        Some(Credential::BearerToken(_)) | None => {
            get(transport, endpoint, realm, wanted, None).await
        }
    }
}

/// Parses the realm as a URL that credentials may be sent to.
fn realm_url(endpoint: &Endpoint, realm: &str, with_secret: bool) -> Result<Url, RegistryError> {
    let protocol = |source| RegistryError::Protocol {
        request: RequestLine::new(&Method::GET, endpoint.base(), &endpoint.credential_host),
        source,
    };
    let url = Url::parse(realm)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        .ok_or_else(|| protocol(ProtocolViolation::InvalidRealm))?;
    let downgraded = endpoint.base().scheme() == "https" && url.scheme() == "http";
    if with_secret && downgraded && !is_loopback(&url) {
        return Err(protocol(ProtocolViolation::RealmWithoutTls));
    }
    Ok(url)
}

async fn get(
    transport: &Transport,
    endpoint: &Endpoint,
    mut url: Url,
    wanted: &TokenRequest<'_>,
    basic: Option<(&str, &str)>,
) -> Result<Token, RegistryError> {
    {
        let mut query = url.query_pairs_mut();
        if let Some(service) = wanted.service {
            query.append_pair("service", service);
        }
        for scope in wanted.scope.split(' ').filter(|scope| !scope.is_empty()) {
            query.append_pair("scope", scope);
        }
        if let Some((user, _)) = basic {
            query.append_pair("account", user);
        }
    }
    let authorization = match basic {
        Some((user, password)) => Some(
            basic_header(user, password)
                .ok_or_else(|| RegistryError::from(Misconfiguration::UnsendableUser))?,
        ),
        None => None,
    };
    let spec = RequestSpec::get(url, headers()).within(wanted.reach);
    let secret = basic.map(|(_, password)| password);
    exchange(transport, endpoint, spec, authorization.as_ref(), secret).await
}

async fn post(
    transport: &Transport,
    endpoint: &Endpoint,
    url: Url,
    wanted: &TokenRequest<'_>,
    grant: &[(&str, &str)],
    secret: &str,
) -> Result<Token, RegistryError> {
    let mut headers = headers();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/x-www-form-urlencoded"),
    );
    let spec = RequestSpec {
        method: Method::POST,
        url,
        headers,
        payload: Payload::Bytes(form(wanted, grant)),
        reach: wanted.reach,
    };
    exchange(transport, endpoint, spec, None, Some(secret)).await
}

/// Encodes the body of an OAuth2 request.
fn form(wanted: &TokenRequest<'_>, grant: &[(&str, &str)]) -> Bytes {
    let mut form = url::form_urlencoded::Serializer::new(String::new());
    form.extend_pairs(grant);
    form.append_pair("client_id", CLIENT_ID);
    if let Some(service) = wanted.service {
        form.append_pair("service", service);
    }
    form.append_pair("scope", wanted.scope);
    Bytes::from(form.finish())
}

async fn exchange(
    transport: &Transport,
    endpoint: &Endpoint,
    spec: RequestSpec<'_>,
    authorization: Option<&HeaderValue>,
    secret: Option<&str>,
) -> Result<Token, RegistryError> {
    let mut secrets = endpoint.headers.secrets();
    secrets.extend(secret.map(str::to_owned));
    // The body of a POST holds a secret and must not follow a redirect.
    let response = if spec.is_read() {
        send_following(transport, endpoint, spec, authorization).await?
    } else {
        transport.send(endpoint, &spec, authorization).await?
    };
    if !response.status().is_success() {
        return Err(response.into_error(endpoint, &secrets).await);
    }
    let line = response.line().clone();
    let body = response.bytes(MAX_ANSWER).await?;
    // serde's message may quote the response, which holds the token.
    let answer: TokenResponse =
        serde_json::from_slice(&body).map_err(|_| RegistryError::Protocol {
            request: line.clone(),
            source: ProtocolViolation::TokenNotJson,
        })?;
    let secret = answer
        .token
        .or(answer.access_token)
        .filter(|token| !token.is_empty())
        .ok_or_else(|| RegistryError::Protocol {
            request: line,
            source: ProtocolViolation::NoToken,
        })?;
    Ok(Token {
        secret,
        lifetime: Duration::from_secs(answer.expires_in.filter(|s| *s > 0).unwrap_or(60)),
    })
}

fn headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    headers
}

/// Returns a `Basic` header (RFC 7617); `None` if the text cannot be sent in a header.
pub(crate) fn basic_header(user: &str, password: &str) -> Option<HeaderValue> {
    let encoded = STANDARD.encode(format!("{user}:{password}"));
    sensitive(&format!("Basic {encoded}"))
}

/// Returns a `Bearer` header (RFC 6750); `None` if the text cannot be sent in a header.
pub(crate) fn bearer_header(token: &str) -> Option<HeaderValue> {
    sensitive(&format!("Bearer {token}"))
}

fn sensitive(value: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(value).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ClientConfig;

    #[test]
    fn secrets_go_to_no_token_server_without_tls_from_a_registry_with_tls() {
        let config = ClientConfig::default();
        let registry = |name| crate::endpoint::origin(&config, name).unwrap();
        let secure = registry("r.example");
        assert!(realm_url(&secure, "http://auth.example/token", true).is_err());
        assert!(realm_url(&secure, "http://auth.example/token", false).is_ok());
        assert!(realm_url(&secure, "http://localhost/token", true).is_ok());
        assert!(realm_url(&secure, "https://auth.example/token", true).is_ok());
        let plain = registry("localhost:5000");
        assert!(realm_url(&plain, "http://auth.example/token", true).is_ok());
        assert!(realm_url(&plain, "/token", true).is_err());
    }

    #[test]
    fn headers_with_secrets_are_marked_and_injections_refused() {
        let header = basic_header("me", "hunter2").unwrap();
        assert!(header.is_sensitive() && !format!("{header:?}").contains("bWU"));
        assert!(bearer_header("a\r\nX: y").is_none());
    }
}
