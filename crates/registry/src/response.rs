//! A response whose head has arrived: reading its body within limits, and the message of an error
//! response.

use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, HeaderName, RETRY_AFTER};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use tokio::time::Instant;
use url::Url;

use crate::connection_error::connection_error;
use crate::endpoint::Endpoint;
use crate::reach::{Reach, Zone};
use crate::retry::parse_retry_after;
use crate::{RegistryError, RequestLine};

/// Bytes of an error's body that are read.
const ERROR_BODY: u64 = 8 << 10;
/// Characters of its message that are shown.
const SHOWN: usize = 300;

pub(crate) struct Incoming {
    zone: Zone,
    reach: Reach,
    response: reqwest::Response,
    line: RequestLine,
    idle: Duration,
    whole: Duration,
    started: Instant,
}

impl Incoming {
    pub(crate) fn new(
        (zone, reach): (Zone, Reach),
        response: reqwest::Response,
        line: RequestLine,
        idle: Duration,
        whole: Duration,
    ) -> Self {
        Self {
            zone,
            reach,
            response,
            line,
            idle: idle.min(whole),
            whole,
            started: Instant::now(),
        }
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    pub(crate) fn header(&self, name: impl Into<HeaderName>) -> Option<&str> {
        self.response.headers().get(name.into())?.to_str().ok()
    }

    /// The `Content-Length` header, which for HEAD is not the body's length.
    pub(crate) fn content_length(&self) -> Option<u64> {
        self.header(CONTENT_LENGTH)?.parse().ok()
    }

    pub(crate) fn url(&self) -> &Url {
        self.line.url().expose()
    }

    /// How far the URL of this response was allowed to lead.
    pub(crate) const fn reach(&self) -> Reach {
        self.reach
    }

    /// How far the URLs that this response names may lead.
    pub(crate) const fn names(&self) -> Reach {
        Reach::NamedFrom(self.zone)
    }

    pub(crate) fn line(&self) -> &RequestLine {
        &self.line
    }

    /// Returns the next piece of the body; `None` at its end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let idle = self.idle;
        match tokio::time::timeout(idle, self.response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(error)) => Err(match connection_error(self.line.clone(), error, idle) {
                // The head has arrived: what broke is the body.
                RegistryError::Unreachable { request, source }
                | RegistryError::Dropped { request, source } => RegistryError::BadBody {
                    request,
                    source: source.into(),
                },
                RegistryError::Tls { request, source } => RegistryError::BadBody {
                    request,
                    source: source.into(),
                },
                other => other,
            }),
            Err(_) => Err(RegistryError::Timeout {
                request: self.line.clone(),
                phase: "further bytes",
                after: idle,
            }),
        }
    }

    /// Reads the whole body, at most `limit` bytes.
    pub(crate) async fn bytes(mut self, limit: u64) -> Result<Bytes, RegistryError> {
        let line = self.line.clone();
        let too_large = || RegistryError::TooLarge {
            what: line.to_string(),
            limit,
        };
        if self.content_length().is_some_and(|length| length > limit) {
            return Err(too_large());
        }
        let left = self.whole.saturating_sub(self.started.elapsed());
        let after = self.whole;
        let read = async {
            let mut all = BytesMut::new();
            while let Some(chunk) = self.chunk().await? {
                if (all.len() + chunk.len()) as u64 > limit {
                    return Err(too_large());
                }
                all.extend_from_slice(&chunk);
            }
            Ok(all.freeze())
        };
        tokio::time::timeout(left, read).await.unwrap_or_else(|_| {
            Err(RegistryError::Timeout {
                request: line.clone(),
                phase: "end of the response",
                after,
            })
        })
    }

    /// Converts a response with an error status to an error. `secrets` are redacted from its
    /// message, should the server repeat them. The text of a server that is not the registry itself is
    /// only logged: a client that sees the error may not be allowed to read there.
    pub(crate) async fn into_error(self, endpoint: &Endpoint, secrets: &[String]) -> RegistryError {
        let request = self.line.clone();
        let status = self.status().as_u16();
        let retry_after = self
            .header(RETRY_AFTER)
            .and_then(|value| parse_retry_after(value, SystemTime::now()));
        let foreign = !endpoint.owns(self.url());
        let body = self.error_body().await;
        let codes = codes(&body);
        let mut message = message(&body, secrets);
        if foreign && !message.is_empty() {
            tracing::debug!(%request, status, text = message, "another server refused a request");
            message = codes.first().cloned().unwrap_or_default();
        }
        RegistryError::Status {
            request,
            status,
            message,
            codes,
            retry_after,
        }
    }

    /// Reads and drops a small body, so that the connection can be reused.
    pub(crate) async fn drain(self) {
        self.error_body().await;
    }

    /// Reads the start of the body, for at most 2 s.
    async fn error_body(mut self) -> BytesMut {
        let mut start = BytesMut::new();
        let read = async {
            while let Ok(Some(chunk)) = self.chunk().await {
                start.extend_from_slice(&chunk);
                if start.len() as u64 >= ERROR_BODY {
                    break;
                }
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(2), read).await;
        start.truncate(usize::try_from(ERROR_BODY).unwrap_or(usize::MAX));
        start
    }
}

#[derive(Deserialize)]
struct Errors {
    errors: Vec<OneError>,
}

#[derive(Deserialize)]
struct OneError {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// Extracts the message of a registry (OCI error JSON), a token server or an object store (XML),
/// shortened. HTML pages are left out.
fn message(body: &[u8], secrets: &[String]) -> String {
    let text = String::from_utf8_lossy(body);
    let text_found = if let Ok(errors) = serde_json::from_str::<Errors>(&text) {
        let parts: Vec<String> = errors
            .errors
            .into_iter()
            .map(|e| match (e.code.as_str(), e.message.as_str()) {
                (code, "") => code.to_owned(),
                ("", message) => message.to_owned(),
                (code, message) => format!("{code}: {message}"),
            })
            .collect();
        parts.join("; ")
    } else if let Ok(object) = serde_json::from_str::<serde_json::Value>(&text) {
        ["details", "message", "error_description", "error"]
            .iter()
            .find_map(|key| object.get(key)?.as_str())
            .unwrap_or_default()
            .to_owned()
    } else if text.trim_start().starts_with('<') {
        // The other elements of an S3 error repeat what was signed.
        [element(&text, "Code"), element(&text, "Message")]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(": ")
    } else {
        text.lines().next().unwrap_or_default().to_owned()
    };
    clean(&text_found, secrets)
}

/// The error codes in a body: plain words such as `DENIED`, or an object store's `SignatureDoesNotMatch`.
fn codes(body: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(body);
    let mut codes = match serde_json::from_str::<Errors>(&text) {
        Ok(errors) => errors.errors.into_iter().map(|error| error.code).collect(),
        Err(_) => Vec::from_iter(element(&text, "Code")),
    };
    codes.retain(|code| {
        (3..=40).contains(&code.len()) && code.chars().all(|c| c.is_ascii_alphabetic() || c == '_')
    });
    codes
}

/// The text of an XML element.
fn element(text: &str, name: &str) -> Option<String> {
    let (_, after) = text.split_once(&format!("<{name}>"))?;
    Some(after.split_once("</")?.0.to_owned())
}

/// Redacts secrets and signed queries, removes control characters, and shortens the text.
fn clean(text: &str, secrets: &[String]) -> String {
    let mut text = text.to_owned();
    for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
        text = text.replace(secret, "…");
    }
    let words: Vec<String> = text
        .split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|word| !word.is_empty())
        .map(|word| match word.split_once('?') {
            // A query may be signed.
            Some((before, _)) if before.contains("://") => format!("{before}?…"),
            _ => word.to_owned(),
        })
        .collect();
    let text = words.join(" ");
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_the_registrys_own_words_short_and_without_control_characters() {
        let json =
            br#"{"errors":[{"code":"DENIED","message":"no\u001b[31m\n access"},{"code":"X"}]}"#;
        assert_eq!(message(json, &[]), "DENIED: no [31m access; X");
        let xml = b"<?xml?><Error><Code>AccessDenied</Code><Message>Request has expired</Message><StringToSign>s3cret</StringToSign></Error>";
        assert_eq!(message(xml, &[]), "AccessDenied: Request has expired");
        assert_eq!(message(b"<html><body>oops</body></html>", &[]), "");
        assert_eq!(message(br#"{"details":"bad"}"#, &[]), "bad");
        assert_eq!(
            message("ü".repeat(1000).as_bytes(), &[]).chars().count(),
            SHOWN + 1
        );
        assert_eq!(message(&[0xff, 0x00], &[]), "\u{fffd}");
    }

    #[test]
    fn codes_outlive_a_message_that_is_shortened() {
        let long = "x".repeat(SHOWN);
        let json = format!(
            r#"{{"errors":[{{"code":"DENIED","message":"{long}"}},{{"code":"MANIFEST_BLOB_UNKNOWN"}},
               {{"code":"not a code"}}]}}"#
        );
        assert_eq!(codes(json.as_bytes()), ["DENIED", "MANIFEST_BLOB_UNKNOWN"]);
        assert!(!message(json.as_bytes(), &[]).contains("MANIFEST_BLOB_UNKNOWN"));
        let xml = b"<Error><Code>AccessDenied</Code><Message>expired</Message></Error>";
        assert_eq!(codes(xml), ["AccessDenied"]);
        assert!(codes(b"MANIFEST_BLOB_UNKNOWN").is_empty());
    }

    #[test]
    fn messages_that_repeat_a_secret_do_not_show_it() {
        assert_eq!(
            message(
                b"token hunter2 refused for https://s/x?sig=abc",
                &["hunter2".to_owned()]
            ),
            "token … refused for https://s/x?…"
        );
    }
}
