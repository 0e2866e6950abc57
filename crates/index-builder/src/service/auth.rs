//! The shared secret: a bearer token, or the key of a signature over the body.

use std::path::Path;

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use ring::hmac;

/// Headers with the signature `sha256=<hex>` of a body: ours, and the one that many senders of
/// webhooks use.
const SIGNATURES: [&str; 2] = ["x-soci-signature-256", "x-hub-signature-256"];
/// Shortest secret in bytes.
const SHORTEST: usize = 16;

/// A secret that the senders of events know. `Debug` shows nothing.
pub struct Secret {
    /// Its bytes as the key of signatures.
    key: hmac::Key,
    /// Its own signature under a random key: tokens are compared by theirs, in constant time.
    compare: hmac::Key,
    tag: hmac::Tag,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Why a secret cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// The file cannot be read.
    #[error("cannot read the secret {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
    /// Its content.
    #[error("cannot use the secret: {0}")]
    Content(&'static str),
}

impl Secret {
    /// Reads a secret from a file; white space around it does not count.
    ///
    /// # Errors
    /// The file cannot be read, or the secret is short.
    pub fn read(path: &Path) -> Result<Self, SecretError> {
        let text = std::fs::read(path).map_err(|source| SecretError::Read {
            path: path.display().to_string(),
            source,
        })?;
        Self::new(text.trim_ascii())
    }

    /// Creates a secret.
    ///
    /// # Errors
    /// It is short.
    pub fn new(secret: &[u8]) -> Result<Self, SecretError> {
        if secret.len() < SHORTEST {
            return Err(SecretError::Content(
                "it is shorter than 16 bytes; make one with `openssl rand -hex 32`",
            ));
        }
        let random = ring::rand::SystemRandom::new();
        let compare = hmac::Key::generate(hmac::HMAC_SHA256, &random)
            .map_err(|_| SecretError::Content("the system gives no random numbers"))?;
        Ok(Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, secret),
            tag: hmac::sign(&compare, secret),
            compare,
        })
    }

    /// Whether the sender of a request knows the secret: by a signature of the body or by a token. One
    /// that is wrong is not made good by another.
    #[must_use]
    pub(super) fn admits(&self, headers: &HeaderMap, body: &[u8]) -> bool {
        let signatures = SIGNATURES.iter().flat_map(|name| headers.get_all(*name));
        let tokens = headers.get_all(AUTHORIZATION).iter();
        let mut checks = signatures
            .map(|value| self.is_signature(value.as_bytes(), body))
            .chain(tokens.map(|value| self.is_token(value.as_bytes())))
            .peekable();
        checks.peek().is_some() && checks.all(|fine| fine)
    }

    fn is_signature(&self, value: &[u8], body: &[u8]) -> bool {
        let hex = value.strip_prefix(b"sha256=");
        hex.and_then(bytes_of_hex)
            .is_some_and(|tag| hmac::verify(&self.key, body, &tag).is_ok())
    }

    fn is_token(&self, value: &[u8]) -> bool {
        let scheme = value.get(..7);
        let bearer = scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"bearer "));
        let token = value.get(7..).unwrap_or_default().trim_ascii();
        bearer && hmac::verify(&self.compare, token, self.tag.as_ref()).is_ok()
    }
}

fn bytes_of_hex(hex: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|n| u8::try_from(n).ok())
    };
    let (pairs, rest) = hex.as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    let byte = |[high, low]: &[u8; 2]| Some(digit(*high)? << 4 | digit(*low)?);
    pairs.iter().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    const SECRET: &[u8] = b"0123456789abcdef0123";

    fn headers(all: &[(&'static str, &str)]) -> HeaderMap {
        let entry = |(name, value): &(&'static str, &str)| {
            (
                (*name).parse().unwrap(),
                HeaderValue::from_str(value).unwrap(),
            )
        };
        all.iter().map(entry).collect()
    }

    fn signature(body: &[u8]) -> String {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET), body);
        let hex: String = tag
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        format!("sha256={hex}")
    }

    #[test]
    fn a_signature_is_for_one_body_and_a_token_must_be_whole() {
        let secret = Secret::new(SECRET).unwrap();
        let good = signature(b"body");
        let token = "Bearer 0123456789abcdef0123";
        for fine in [
            headers(&[("x-soci-signature-256", &good)]),
            headers(&[("x-hub-signature-256", &good)]),
            headers(&[("authorization", token)]),
            headers(&[("authorization", token), ("x-hub-signature-256", &good)]),
        ] {
            assert!(secret.admits(&fine, b"body"), "{fine:?}");
        }
        for bad in [
            headers(&[]),
            headers(&[("x-soci-signature-256", &signature(b"other"))]),
            headers(&[("x-soci-signature-256", "sha256=zz")]),
            headers(&[("x-soci-signature-256", "sha256=")]),
            headers(&[("x-soci-signature-256", good.get(7..).unwrap())]),
            headers(&[("authorization", "Bearer 0123456789abcdef012")]),
            headers(&[("authorization", "Bearer ")]),
            headers(&[("authorization", "Basic 0123456789abcdef0123")]),
            headers(&[
                ("authorization", token),
                ("x-hub-signature-256", "sha256=00"),
            ]),
        ] {
            assert!(!secret.admits(&bad, b"body"), "{bad:?}");
        }
        assert!(Secret::new(b"short").is_err());
        assert_eq!(format!("{secret:?}"), "Secret(…)");
    }
}
