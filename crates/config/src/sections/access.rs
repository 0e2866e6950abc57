//! How registries are reached: retries, time-outs, mirrors.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::schema::{Broken, Section, Unit, Visitor};

/// `[http]`: time-outs and retries of registry requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Http {
    /// Time for a connection to be made.
    pub dial_timeout: Duration,
    /// Time from the end of the request to the end of the response's headers.
    pub response_header_timeout: Duration,
    /// Time for the whole exchange, body included.
    pub request_timeout: Duration,
    /// Attempts after the first.
    pub max_retries: u64,
    /// Shortest wait between attempts.
    pub min_wait: Duration,
    /// Longest wait between attempts.
    pub max_wait: Duration,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            dial_timeout: Duration::from_millis(3000),
            response_header_timeout: Duration::from_millis(3000),
            request_timeout: Duration::from_millis(300_000),
            max_retries: 8,
            min_wait: Duration::from_millis(30),
            max_wait: Duration::from_millis(300_000),
        }
    }
}

impl Section for Http {
    fn visit(&mut self, v: &mut impl Visitor) {
        v.timeout(
            "DialTimeoutMsec",
            Unit::Milliseconds,
            &mut self.dial_timeout,
        );
        v.timeout(
            "ResponseHeaderTimeoutMsec",
            Unit::Milliseconds,
            &mut self.response_header_timeout,
        );
        v.timeout(
            "RequestTimeoutMsec",
            Unit::Milliseconds,
            &mut self.request_timeout,
        );
        v.retries("MaxRetries", &mut self.max_retries);
        v.pause("MinWaitMsec", Unit::Milliseconds, &mut self.min_wait);
        v.pause("MaxWaitMsec", Unit::Milliseconds, &mut self.max_wait);
        lower_default(&mut self.min_wait, Self::default().min_wait, self.max_wait);
    }

    fn check(&self) -> Vec<Broken> {
        waits("MinWaitMsec", self.min_wait, self.max_wait)
    }
}

/// `[blob]`: lazily read layers.
#[derive(Debug, Clone, PartialEq)]
pub struct Blob {
    /// How long a resolved blob address is taken for valid. Without effect: addresses are resolved
    /// again when they stop working.
    pub valid_interval: Duration,
    /// Time for one fetch of spans.
    pub fetching_timeout: Duration,
    /// Attempts after the first.
    pub max_retries: u64,
    /// Shortest wait between attempts.
    pub min_wait: Duration,
    /// Longest wait between attempts.
    pub max_wait: Duration,
    /// Ask the registry on every access whether the blob is there. Without effect.
    pub check_always: bool,
    /// Never request several ranges in one request. Without effect: ours never does.
    pub force_single_range_mode: bool,
    /// How often a span with the wrong digest is fetched again.
    pub max_span_verification_retries: u64,
}

impl Default for Blob {
    fn default() -> Self {
        Self {
            valid_interval: Duration::from_secs(60),
            fetching_timeout: Duration::from_secs(300),
            max_retries: 8,
            min_wait: Duration::from_millis(30),
            max_wait: Duration::from_millis(300_000),
            check_always: false,
            force_single_range_mode: false,
            max_span_verification_retries: 0,
        }
    }
}

impl Section for Blob {
    fn visit(&mut self, v: &mut impl Visitor) {
        v.pause("valid_interval", Unit::Seconds, &mut self.valid_interval);
        v.timeout(
            "fetching_timeout_sec",
            Unit::Seconds,
            &mut self.fetching_timeout,
        );
        v.retries("max_retries", &mut self.max_retries);
        v.pause("min_wait_msec", Unit::Milliseconds, &mut self.min_wait);
        v.pause("max_wait_msec", Unit::Milliseconds, &mut self.max_wait);
        lower_default(&mut self.min_wait, Self::default().min_wait, self.max_wait);
        v.flag("check_always", &mut self.check_always);
        v.flag("force_single_range_mode", &mut self.force_single_range_mode);
        v.count(
            "max_span_verification_retries",
            &mut self.max_span_verification_retries,
        );
    }

    fn check(&self) -> Vec<Broken> {
        waits("min_wait_msec", self.min_wait, self.max_wait)
    }
}

/// A longest wait below the shortest one that is not set lowers that, as in v0.15.
fn lower_default(min: &mut Duration, default: Duration, max: Duration) {
    if *min == default {
        *min = default.min(max);
    }
}

fn waits(key: &'static str, min: Duration, max: Duration) -> Vec<Broken> {
    if min <= max {
        return Vec::new();
    }
    let allowed = format!("at most the longest wait, {} ms", max.as_millis());
    vec![Broken::new(key, min.as_millis().to_string(), allowed)]
}

/// Where containerd's registry configuration usually is.
const CERTS_D: &str = "/etc/containerd/certs.d";

/// `[resolver]`: which hosts serve a registry name.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolver {
    /// How many seconds an authorised client is kept; `None` for ever.
    pub auth_client_ttl_sec: Option<u64>,
    /// Share authorised clients between images.
    pub enable_auth_client_sharing: bool,
    /// Folders with containerd's registry configuration, separated by colons; empty: none.
    pub config_path: String,
    /// Let a registry or mirror with TLS redirect to a host without.
    pub plain_http_redirects: bool,
    /// `[resolver.host."NAME"]`, by registry name.
    pub host: BTreeMap<String, Host>,
}

impl Default for Resolver {
    fn default() -> Self {
        Self {
            auth_client_ttl_sec: Some(3600),
            enable_auth_client_sharing: false,
            config_path: CERTS_D.to_owned(),
            plain_http_redirects: false,
            host: BTreeMap::new(),
        }
    }
}

impl Section for Resolver {
    fn visit(&mut self, v: &mut impl Visitor) {
        v.limit("auth_client_ttl_sec", &mut self.auth_client_ttl_sec);
        v.flag(
            "enable_auth_client_sharing",
            &mut self.enable_auth_client_sharing,
        );
        v.added_text("config_path", &mut self.config_path, CERTS_D);
        v.added_flag("plain_http_redirects", &mut self.plain_http_redirects);
        v.named_tables("host", &mut self.host);
    }
}

/// `[resolver.host."NAME"]`
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Host {
    /// Tried in order before the registry itself.
    pub mirrors: Vec<Mirror>,
}

impl Section for Host {
    fn visit(&mut self, v: &mut impl Visitor) {
        v.tables("mirrors", &mut self.mirrors);
    }
}

/// `[[resolver.host."NAME".mirrors]]`
#[derive(Debug, Clone, PartialEq)]
pub struct Mirror {
    /// A URL whose path replaces `/v2`, or a bare `host[:port]`.
    pub host: String,
    /// Plain HTTP instead of TLS.
    pub insecure: bool,
    /// Seconds for one request: `Some(0)` as `[http] RequestTimeoutMsec`, `None` no limit.
    pub request_timeout_sec: Option<u64>,
}

impl Default for Mirror {
    fn default() -> Self {
        Self {
            host: String::new(),
            insecure: false,
            request_timeout_sec: Some(0),
        }
    }
}

impl Section for Mirror {
    fn visit(&mut self, v: &mut impl Visitor) {
        v.text("host", &mut self.host);
        v.flag("insecure", &mut self.insecure);
        v.limit("request_timeout_sec", &mut self.request_timeout_sec);
    }

    fn check(&self) -> Vec<Broken> {
        if is_mirror_host(&self.host) {
            return Vec::new();
        }
        // A URL may carry a password: it is not repeated.
        let value = if self.host.contains('@') {
            "(a value with @)".to_owned()
        } else {
            format!("{:?}", self.host)
        };
        let allowed =
            "http(s)://HOST[:PORT][/PATH] or HOST[:PORT], without user, query or fragment";
        vec![Broken::new("host", value, allowed)]
    }
}

fn is_mirror_host(text: &str) -> bool {
    let rest = match text.split_once("://") {
        Some((scheme, rest))
            if scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https") =>
        {
            rest
        }
        Some(_) => return false,
        None => text,
    };
    if rest.contains(|c: char| c.is_whitespace() || c.is_control() || "@?#\\".contains(c)) {
        return false;
    }
    let authority = rest
        .split_once('/')
        .map_or(rest, |(authority, _)| authority);
    let (host, port) = match authority.strip_prefix('[') {
        Some(v6) => match v6.split_once(']') {
            Some((host, port)) if host.parse::<std::net::Ipv6Addr>().is_ok() => (
                host,
                port.strip_prefix(':').or((!port.is_empty()).then_some("")),
            ),
            _ => return false,
        },
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    !host.is_empty() && port.is_none_or(|p| p.parse::<u16>().is_ok_and(|n| n > 0))
}

#[cfg(test)]
mod tests {
    use super::is_mirror_host;

    #[test]
    fn mirrors_are_urls_or_bare_names() {
        for good in [
            "mirror.example.com",
            "localhost:5000",
            "http://10.0.0.1:5000",
            "https://m.example.com/v2/cache",
            "[::1]:5000",
            "[::1]",
        ] {
            assert!(is_mirror_host(good), "{good}");
        }
        for bad in [
            "",
            "http://",
            "ftp://m",
            "m:port",
            "m:0",
            "m:70000",
            "user:pw@m",
            "m?x=1",
            "a b",
            ":5000",
            "[::1]x",
            "[nope]",
        ] {
            assert!(!is_mirror_host(bad), "{bad}");
        }
    }
}
