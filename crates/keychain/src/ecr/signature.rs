//! Signature version 4 of requests to AWS
//! (`docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv.html`).

use std::fmt::Write as _;

use jiff::Timestamp;
use jiff::fmt::strtime;
use ring::{digest, hmac};

/// Keys of a role. No `Debug`.
#[derive(Clone)]
pub(super) struct Keys {
    pub(super) id: String,
    pub(super) secret: String,
    pub(super) session: Option<String>,
}

/// A request to be signed.
pub(super) struct Unsigned<'a> {
    pub(super) method: &'a str,
    /// The path, percent-encoded.
    pub(super) path: &'a str,
    /// The query, sorted and percent-encoded.
    pub(super) query: &'a str,
    /// Names in lower case with their values; `host` is one.
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: &'a [u8],
    pub(super) region: &'a str,
    pub(super) service: &'a str,
}

impl Unsigned<'_> {
    /// Returns all headers to send.
    pub(super) fn sign(mut self, keys: &Keys, now: Timestamp) -> Vec<(&'static str, String)> {
        let at = strtime::format("%Y%m%dT%H%M%SZ", now).unwrap_or_default();
        let day = at.get(..8).unwrap_or_default().to_owned();
        self.headers.push(("x-amz-date", at.clone()));
        if let Some(session) = &keys.session {
            self.headers.push(("x-amz-security-token", session.clone()));
        }
        self.headers.sort();
        let mut canonical = String::new();
        for (name, value) in &self.headers {
            let _ = writeln!(canonical, "{name}:{}", value.trim());
        }
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| *name).collect();
        let names = names.join(";");
        let request = format!(
            "{}\n{}\n{}\n{canonical}\n{names}\n{}",
            self.method,
            self.path,
            self.query,
            sha256(self.body)
        );
        let scope = format!("{day}/{}/{}/aws4_request", self.region, self.service);
        let to_sign = format!(
            "AWS4-HMAC-SHA256\n{at}\n{scope}\n{}",
            sha256(request.as_bytes())
        );
        let mut key = format!("AWS4{}", keys.secret).into_bytes();
        for part in [day.as_str(), self.region, self.service, "aws4_request"] {
            key = mac(&key, part.as_bytes());
        }
        let signature = hex(&mac(&key, to_sign.as_bytes()));
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}",
            keys.id
        );
        self.headers.push(("authorization", authorization));
        self.headers
    }
}

fn mac(key: &[u8], text: &[u8]) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::sign(&key, text).as_ref().to_vec()
}

fn sha256(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signature(unsigned: Unsigned<'_>) -> String {
        let keys = Keys {
            id: "AKIDEXAMPLE".to_owned(),
            secret: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".to_owned(),
            session: None,
        };
        let headers = unsigned.sign(&keys, "2015-08-30T12:36:00Z".parse().unwrap());
        let (_, value) = headers.last().unwrap();
        value.rsplit('=').next().unwrap().to_owned()
    }

    /// The examples that AWS publishes.
    #[test]
    fn signatures_are_those_of_the_published_examples() {
        let list_users = Unsigned {
            method: "GET",
            path: "/",
            query: "Action=ListUsers&Version=2010-05-08",
            headers: vec![
                (
                    "content-type",
                    "application/x-www-form-urlencoded; charset=utf-8".to_owned(),
                ),
                ("host", "iam.amazonaws.com".to_owned()),
            ],
            body: b"",
            region: "us-east-1",
            service: "iam",
        };
        assert_eq!(
            signature(list_users),
            "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"
        );
        let post_vanilla = Unsigned {
            method: "POST",
            path: "/",
            query: "",
            headers: vec![("host", "example.amazonaws.com".to_owned())],
            body: b"",
            region: "us-east-1",
            service: "service",
        };
        assert_eq!(
            signature(post_vanilla),
            "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"
        );
    }
}
