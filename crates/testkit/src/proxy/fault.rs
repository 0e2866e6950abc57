//! Faults, and the rules that say which requests meet them.

use std::time::Duration;

use anyhow::Result;
use regex::Regex;
use soci_oci::Digest;

use crate::http1::Head;

/// What goes wrong with one response. Offsets count bytes of the response's body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Another status with these header fields and body, without asking the registry.
    Status {
        /// The status.
        status: u16,
        /// Header fields, such as `Retry-After`.
        headers: Vec<(String, String)>,
        /// The body.
        body: String,
    },
    /// A redirect to the same path and query below another base URL (`http://127.0.0.1:1`).
    Redirect {
        /// The status: 301, 302, 303, 307 or 308.
        status: u16,
        /// Scheme, host and port of the target, without a slash at the end.
        base: String,
        /// What is added to the query, as a signature would be.
        query: Option<String>,
    },
    /// The connection is reset (RST) before any response.
    Reset,
    /// The connection is reset after this much of the body.
    ResetAfter(u64),
    /// No answer ever, the connection stays open until the client closes it.
    Hang,
    /// Nothing more after this much of the body, the connection stays open.
    HangAfter(u64),
    /// The connection is closed in good order after this much of the body, whose announced length
    /// was the whole.
    Truncate(u64),
    /// A consistent response that is shorter than what was requested: this many bytes, with
    /// `Content-Length` (but not `Content-Range`) saying so.
    Shorten(u64),
    /// The byte at this offset of the body is flipped.
    Corrupt(u64),
    /// The byte at this offset of the *blob* is flipped in every response that holds it.
    CorruptBlob(u64),
    /// `Range` is ignored: the whole with status 200.
    IgnoreRange,
    /// `Content-Range` names a range this many bytes further on; the body is the right one.
    WrongContentRange(i64),
    /// The response has these header fields with other values, or without a value lacks the field.
    Headers(Vec<(&'static str, Option<&'static str>)>),
    /// The response is delayed before its first byte.
    Delay(Duration),
}

impl Fault {
    /// A status with an empty body.
    #[must_use]
    pub fn status(status: u16) -> Self {
        Self::Status {
            status,
            headers: Vec::new(),
            body: String::new(),
        }
    }
}

/// Which requests meet a fault. A new rule matches every request, always.
#[derive(Debug, Clone)]
pub struct Rule {
    method: Option<String>,
    path: Option<Regex>,
    ranged: Option<bool>,
    skip: u64,
    times: Option<u64>,
    fault: Fault,
}

impl Rule {
    /// A fault for every request.
    #[must_use]
    pub fn always(fault: Fault) -> Self {
        Self {
            method: None,
            path: None,
            ranged: None,
            skip: 0,
            times: None,
            fault,
        }
    }

    /// Only requests of this method.
    #[must_use]
    pub fn method(mut self, method: &str) -> Self {
        self.method = Some(method.to_owned());
        self
    }

    /// Only requests whose path and query match this regular expression somewhere.
    ///
    /// # Errors
    /// When the expression is wrong.
    pub fn path(mut self, expression: &str) -> Result<Self> {
        self.path = Some(Regex::new(expression)?);
        Ok(self)
    }

    /// Only requests for this blob, in whatever repository.
    #[must_use]
    pub fn blob(mut self, digest: Digest) -> Self {
        // A digest holds no character with a meaning in expressions, so this one always compiles.
        self.path = Regex::new(&format!("/blobs/{digest}($|\\?)")).ok();
        self
    }

    /// Only requests with `Range` (or only those without).
    #[must_use]
    pub fn ranged(mut self, ranged: bool) -> Self {
        self.ranged = Some(ranged);
        self
    }

    /// Only from the `n`th matching request on (counted from 0).
    #[must_use]
    pub fn from_nth(mut self, n: u64) -> Self {
        self.skip = n;
        self
    }

    /// Only this often.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = Some(times);
        self
    }

    fn matches(&self, request: &Head) -> bool {
        self.method
            .as_deref()
            .is_none_or(|method| method == request.word(0))
            && self
                .path
                .as_ref()
                .is_none_or(|path| path.is_match(request.word(1)))
            && self
                .ranged
                .is_none_or(|ranged| ranged == request.get("range").is_some())
    }
}

/// The rules in force.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    rules: Vec<Rule>,
    injected: u64,
}

impl Rules {
    pub(crate) fn add(&mut self, rule: Rule) {
        self.rules.push(rule);
    }

    pub(crate) fn clear(&mut self) {
        self.rules.clear();
    }

    pub(crate) fn injected(&self) -> u64 {
        self.injected
    }

    /// The fault that a request meets; counts it.
    pub(crate) fn meet(&mut self, request: &Head) -> Option<Fault> {
        for rule in &mut self.rules {
            if rule.times == Some(0) || !rule.matches(request) {
                continue;
            }
            if rule.skip > 0 {
                rule.skip -= 1;
                continue;
            }
            rule.times = rule.times.map(|times| times - 1);
            self.injected += 1;
            return Some(rule.fault.clone());
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_counts_only_requests_that_match_it() {
        let mut rules = Rules::default();
        let rule = Rule::always(Fault::Reset)
            .method("GET")
            .path("/blobs/")
            .unwrap();
        rules.add(rule.from_nth(1).times(2));
        let get = Head {
            first_line: "GET /v2/a/blobs/x HTTP/1.1".to_owned(),
            fields: Vec::new(),
        };
        let head = Head {
            first_line: "HEAD /v2/a/blobs/x HTTP/1.1".to_owned(),
            fields: Vec::new(),
        };
        let met: Vec<bool> = [&get, &head, &get, &get, &get]
            .into_iter()
            .map(|request| rules.meet(request).is_some())
            .collect();
        assert_eq!(met, [false, false, true, true, false]);
        assert_eq!(rules.injected(), 2);
    }
}
