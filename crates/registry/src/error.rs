//! The crate's error: what was asked of whom, what came back, and what to do about it.
//! No message holds a credential, a token or a signed query.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use soci_oci::{Digest, RedactedUrl};
use url::Url;

use crate::credentials::CredentialError;

/// The request that an error is about, printed as `GET https://host/path` without secrets.
#[derive(Clone)]
pub struct RequestLine(Arc<Line>);

struct Line {
    method: Method,
    url: RedactedUrl,
    registry: String,
}

impl RequestLine {
    /// `registry` is the name that one logs in to, for advice.
    pub(crate) fn new(method: &Method, url: &Url, registry: &str) -> Self {
        Self(Arc::new(Line {
            method: method.clone(),
            url: RedactedUrl::new(url.clone()),
            registry: registry.to_owned(),
        }))
    }

    /// The HTTP method.
    #[must_use]
    pub fn method(&self) -> &Method {
        &self.0.method
    }

    /// The URL; its `Display` shows no secret.
    #[must_use]
    pub fn url(&self) -> &RedactedUrl {
        &self.0.url
    }

    /// The registry's name as in image references.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.0.registry
    }
}

impl fmt::Display for RequestLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method(), self.url())
    }
}

impl fmt::Debug for RequestLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a registry did not give what was asked.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The registry, a token server or an object store answered with an error status.
    #[error("{request}: status {status}{}{}", said(.message), advice(*.status, .request))]
    Status {
        /// What was asked.
        request: RequestLine,
        /// The HTTP status.
        status: u16,
        /// The registry's own words, shortened and without control characters; may be empty.
        message: String,
        /// How long the registry asks to wait.
        retry_after: Option<Duration>,
    },
    /// Nothing arrived for too long.
    #[error("{request}: no {phase} within {} s; check the network, or raise the time-outs in [http]", .after.as_secs_f32())]
    Timeout {
        /// What was asked.
        request: RequestLine,
        /// What was waited for.
        phase: &'static str,
        /// How long.
        after: Duration,
    },
    /// The caller's deadline passed before the response came.
    #[error("{what}: no response before the deadline of the read{}", last_failure(.last))]
    DeadlineExceeded {
        /// The blob.
        what: String,
        /// The last failure before the deadline.
        #[source]
        last: Option<Arc<RegistryError>>,
    },
    /// No connection, or it broke before an answer came.
    #[error("{request}: {reason}; check that the host is right and can be reached from here")]
    Unreachable {
        /// What was asked.
        request: RequestLine,
        /// The cause.
        reason: String,
    },
    /// The host was reached, but there is no secure connection to it.
    #[error("{request}: {reason}; {advice}")]
    Tls {
        /// What was asked.
        request: RequestLine,
        /// The cause.
        reason: String,
        /// What to do about it.
        advice: &'static str,
    },
    /// The body ended early, went on too long, or the connection broke in its middle.
    #[error("{request}: {reason}")]
    BadBody {
        /// What was asked.
        request: RequestLine,
        /// What is wrong with the body.
        reason: String,
    },
    /// The bytes are not those that the digest stands for.
    #[error(
        "{what}: the content has digest {actual}, not {expected}; the registry or a proxy before it serves damaged data"
    )]
    DigestMismatch {
        /// Which object.
        what: String,
        /// The digest that was asked for.
        expected: Digest,
        /// The digest of what came.
        actual: Digest,
    },
    /// The answer breaks the protocol.
    #[error(
        "{request}: {reason}; this does not look like a registry that follows the OCI distribution specification"
    )]
    Protocol {
        /// What was asked.
        request: RequestLine,
        /// What is wrong.
        reason: String,
    },
    /// More bytes than we take.
    #[error("{what} is larger than the limit of {limit} bytes")]
    TooLarge {
        /// Which object.
        what: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// The caller asked for bytes that the blob does not have.
    #[error("{what}: bytes {}..{} are outside of the blob of {size} bytes", .range.start, .range.end)]
    OutOfRange {
        /// Which blob.
        what: String,
        /// The bytes asked for.
        range: Range<u64>,
        /// The blob's size in bytes.
        size: u64,
    },
    /// Credentials could not be looked up.
    #[error("credentials for {host}: {source}")]
    Credentials {
        /// The registry host.
        host: String,
        /// The cause.
        source: CredentialError,
    },
    /// What we were asked to do or how we are configured makes no sense.
    #[error("{0}")]
    Config(String),
    /// What is downloaded cannot be stored.
    #[error("store {what}: {reason}")]
    Sink {
        /// Which blob.
        what: String,
        /// The cause.
        reason: String,
    },
    /// What is to be uploaded cannot be read.
    #[error("read {what} for upload: {reason}")]
    Source {
        /// Which body.
        what: String,
        /// The cause.
        reason: String,
    },
}

/// The kinds of failure that callers tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The object does not exist (404).
    NotFound,
    /// Credentials are missing or wrong (401), or could not be looked up.
    Unauthorized,
    /// The credentials do not suffice (403).
    Forbidden,
    /// Too many requests (429).
    TooManyRequests,
    /// Nothing came for too long.
    Timeout,
    /// No connection.
    Unreachable,
    /// The registry failed (5xx).
    ServerError,
    /// A body that is shorter, longer or broken.
    BadBody,
    /// Bytes that do not match their digest.
    DigestMismatch,
    /// An answer that makes no sense, or another 4xx.
    Protocol,
    /// Larger than the limit.
    TooLarge,
    /// A wrong call, configuration or local input.
    Config,
}

impl RegistryError {
    /// The kind, for decisions.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Status { status, .. } => match status {
                404 | 410 => ErrorKind::NotFound,
                401 => ErrorKind::Unauthorized,
                403 => ErrorKind::Forbidden,
                408 => ErrorKind::Timeout,
                429 => ErrorKind::TooManyRequests,
                500.. => ErrorKind::ServerError,
                _ => ErrorKind::Protocol,
            },
            Self::Timeout { .. } | Self::DeadlineExceeded { .. } => ErrorKind::Timeout,
            Self::Unreachable { .. } | Self::Tls { .. } => ErrorKind::Unreachable,
            Self::BadBody { .. } => ErrorKind::BadBody,
            Self::DigestMismatch { .. } => ErrorKind::DigestMismatch,
            Self::Protocol { .. } => ErrorKind::Protocol,
            Self::TooLarge { .. } => ErrorKind::TooLarge,
            Self::Credentials { .. } => ErrorKind::Unauthorized,
            Self::OutOfRange { .. } | Self::Config(_) | Self::Sink { .. } | Self::Source { .. } => {
                ErrorKind::Config
            }
        }
    }

    /// May the same request succeed a moment later?
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Status { status, .. } => {
                matches!(status, 408 | 425 | 429 | 500 | 502 | 503 | 504 | 520..=527)
            }
            Self::Timeout { .. }
            | Self::DeadlineExceeded { .. }
            | Self::Unreachable { .. }
            | Self::BadBody { .. } => true,
            _ => false,
        }
    }

    /// The HTTP status, when there is one.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// How long the registry asked to wait.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Is it that the object does not exist?
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.kind() == ErrorKind::NotFound
    }
}

fn said(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(" ({message})")
    }
}

fn last_failure(last: &Option<Arc<RegistryError>>) -> String {
    last.as_ref()
        .map_or_else(String::new, |error| format!("; last failure: {error}"))
}

fn advice(status: u16, request: &RequestLine) -> String {
    let host = request.registry();
    match status {
        401 => format!(
            "; {host} wants credentials, or refused those that it got: \
             log in with `docker login {host}` (soci also takes --user)"
        ),
        403 => format!("; the account used for {host} lacks this right"),
        404 | 410 => "; check the name, the tag and that the account may read it".to_owned(),
        429 => format!("; {host} limits the rate, log in or try later"),
        500.. => format!("; {host} has a problem, try later"),
        _ => String::new(),
    }
}
