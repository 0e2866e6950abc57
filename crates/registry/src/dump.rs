//! The headers of requests and responses for the log, without their secrets.
//!
//! Bodies are left out: the response of a token server is a secret as a whole, and blobs are not
//! text.

use http::HeaderMap;
use url::Url;

use crate::RequestLine;

/// The log target of these events; off unless enabled by name.
const TARGET: &str = "soci_registry::http::dump";

/// Headers whose values authenticate a client.
const SECRET: [&str; 5] = [
    "authorization",
    "proxy-authorization",
    "cookie",
    "set-cookie",
    "docker-upload-uuid",
];

/// Logs the headers of a request and of its response.
pub(crate) fn exchange(line: &RequestLine, sent: &HeaderMap, answer: &reqwest::Response) {
    if !tracing::enabled!(target: TARGET, tracing::Level::TRACE) {
        return;
    }
    tracing::trace!(
        target: TARGET,
        request = %line,
        sent = %shown(sent),
        status = answer.status().as_u16(),
        received = %shown(answer.headers()),
        "headers"
    );
}

fn shown(headers: &HeaderMap) -> String {
    let mut lines: Vec<String> = Vec::new();
    for (name, value) in headers {
        let value = match value.to_str() {
            _ if value.is_sensitive() || SECRET.contains(&name.as_str()) => {
                "(not shown)".to_owned()
            }
            Ok(text) => without_query(text),
            Err(_) => "(no text)".to_owned(),
        };
        lines.push(format!("{name}: {value}"));
    }
    lines.join("; ")
}

/// Signed URLs carry their signature in the query.
fn without_query(value: &str) -> String {
    match (Url::parse(value), value.split_once('?')) {
        (Ok(_), Some((before, _))) => format!("{before}?(not shown)"),
        (Err(_), Some((before, _))) if before.starts_with('/') => format!("{before}?(not shown)"),
        _ => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn what_is_secret_in_headers_is_not_shown() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("cookie", "session=hunter2"),
            ("location", "https://store.example/blob?sig=hunter2"),
            ("link", "/v2/x?token=hunter2"),
            ("content-type", "text/plain"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let mut own = HeaderValue::from_static("hunter2");
        own.set_sensitive(true);
        headers.insert("x-operators-own", own);
        let text = shown(&headers);
        assert!(!text.contains("hunter2"), "{text}");
        assert!(text.contains("content-type: text/plain"), "{text}");
        assert!(text.contains("x-operators-own: (not shown)"), "{text}");
        assert!(
            text.contains("https://store.example/blob?(not shown)"),
            "{text}"
        );
    }
}
