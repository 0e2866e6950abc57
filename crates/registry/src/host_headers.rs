//! Headers that an operator configures for one server (containerd's `hosts.toml`). They often
//! authenticate the client: all of them are treated as secrets.

use http::header::{
    ACCEPT_ENCODING, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, RANGE, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue};

/// Headers that this client and HTTP itself set: values from outside would break requests. Go's
/// client, containerd's, ignores most of them silently.
const RESERVED: [HeaderName; 10] = [
    ACCEPT_ENCODING,
    CONNECTION,
    CONTENT_LENGTH,
    EXPECT,
    HOST,
    RANGE,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];
/// Shortest word that is redacted, in bytes: shorter ones are not secrets, and messages need them.
const SHORTEST_SECRET: usize = 6;

/// Headers for one server. `Debug` shows their names only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostHeaders(HeaderMap);

/// Why a header cannot be sent. No message repeats its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Not a field name (RFC 9110 §5.1).
    #[error("invalid header name")]
    Name,
    /// Not a field value (RFC 9110 §5.5): it has a line end or another control character.
    #[error("the value has a control character")]
    Value,
    /// Requests set it themselves.
    #[error("requests set this header themselves")]
    Reserved,
}

impl HostHeaders {
    /// Adds a header, after those of the same name.
    ///
    /// # Errors
    /// The header cannot be sent.
    pub fn append(&mut self, name: &str, value: &str) -> Result<(), HeaderError> {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| HeaderError::Name)?;
        let value = value.trim_matches([' ', '\t']);
        let mut value =
            HeaderValue::from_bytes(value.as_bytes()).map_err(|_| HeaderError::Value)?;
        if RESERVED.contains(&name) {
            return Err(HeaderError::Reserved);
        }
        value.set_sensitive(true);
        self.0.append(name, value);
        Ok(())
    }

    /// Returns these headers with `others`, which replace those of the same name.
    pub(crate) fn below(&self, others: &HeaderMap) -> HeaderMap {
        let mut all = self.0.clone();
        all.extend(others.clone());
        all
    }

    /// Returns the words of the values, which must not appear in messages: a token is found without
    /// its scheme too.
    pub(crate) fn secrets(&self) -> Vec<String> {
        let values = self
            .0
            .values()
            .map(|value| String::from_utf8_lossy(value.as_bytes()));
        let mut words: Vec<String> = Vec::new();
        for value in values {
            let long = value
                .split_whitespace()
                .filter(|word| word.len() >= SHORTEST_SECRET);
            words.extend(long.map(str::to_owned));
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_break_a_request_is_refused_without_its_value() {
        let mut headers = HostHeaders::default();
        for (name, value, reason) in [
            ("X Y", "hunter2", HeaderError::Name),
            ("", "hunter2", HeaderError::Name),
            ("X-Key", "hunter2\r\nX-Other: 1", HeaderError::Value),
            ("host", "hunter2", HeaderError::Reserved),
            ("Content-Length", "hunter2", HeaderError::Reserved),
        ] {
            let error = headers.append(name, value).unwrap_err();
            assert_eq!(error, reason, "{name}");
            assert!(!format!("{error} {error:?}").contains("hunter2"));
        }
        assert_eq!(headers, HostHeaders::default());
    }

    #[test]
    fn a_request_keeps_its_own_and_gets_every_value_of_the_rest() {
        let mut headers = HostHeaders::default();
        for (name, value) in [
            ("X-Team", "a"),
            ("x-team", " b\t"),
            ("Accept", "text/html"),
            ("Authorization", "Basic aHVudGVyMg=="),
        ] {
            headers.append(name, value).unwrap();
        }
        let mut own = HeaderMap::new();
        own.append("accept", HeaderValue::from_static("application/json"));
        own.append("accept", HeaderValue::from_static("*/*"));
        let all = headers.below(&own);
        let values = |name: &str| -> Vec<_> {
            let values = all.get_all(name).iter();
            values.map(|value| value.to_str().unwrap()).collect()
        };
        assert_eq!(values("x-team"), ["a", "b"]);
        assert_eq!(values("accept"), ["application/json", "*/*"]);
        assert_eq!(headers.secrets(), ["text/html", "aHVudGVyMg=="]);
        assert!(!format!("{headers:?} {all:?}").contains("aHVudGVyMg"));
    }
}
