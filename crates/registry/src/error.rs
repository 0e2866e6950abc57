//! The error of this crate: the request, its failure, and the remedy. No message holds a
//! credential, a token or a signed query.

use std::error::Error;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use soci_oci::{Digest, RedactedUrl};
use url::Url;

use crate::cause::{BodyDefect, ConnectionFailure, Misdirection, ProtocolViolation, TlsFailure};
use crate::credential_error::CredentialError;
use crate::misconfiguration::Misconfiguration;

/// Method and URL of a request, printed as `GET https://host/path` without secrets.
#[derive(Clone)]
pub struct RequestLine(Arc<RequestParts>);

struct RequestParts {
    method: Method,
    url: RedactedUrl,
    registry: String,
}

impl RequestLine {
    /// `registry` is the name to log in to, for advice.
    pub(crate) fn new(method: &Method, url: &Url, registry: &str) -> Self {
        Self(Arc::new(RequestParts {
            method: method.clone(),
            url: RedactedUrl::new(url.clone()),
            registry: registry.to_owned(),
        }))
    }

    /// Returns the HTTP method.
    #[must_use]
    pub fn method(&self) -> &Method {
        &self.0.method
    }

    /// Returns the URL, whose `Display` shows no secret.
    #[must_use]
    pub fn url(&self) -> &RedactedUrl {
        &self.0.url
    }

    /// Returns the name of the registry as in image references.
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

/// Why a request to a registry failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The registry, a token server or an object store answered with an error status.
    #[error("{request}: status {status}{}{}", message_part(.message), advice(*.status, .request))]
    Status {
        /// The request.
        request: RequestLine,
        /// The HTTP status.
        status: u16,
        /// The message of the server, shortened, without control characters; may be empty.
        message: String,
        /// The error codes in the body, in order (OCI distribution specification 1.1, "Error Codes").
        codes: Vec<String>,
        /// The wait that the server requests.
        retry_after: Option<Duration>,
    },
    /// Nothing arrived within a time limit.
    #[error("{request}: no {phase} within {} s; check the network, or raise the time-outs in [http]", .after.as_secs_f32())]
    Timeout {
        /// The request.
        request: RequestLine,
        /// What did not arrive.
        phase: &'static str,
        /// The limit.
        after: Duration,
    },
    /// A download that its limits end.
    #[error("{what}: {bytes} bytes came within {} s, fewer than {least}", .period.as_secs_f32())]
    TooSlow {
        /// The blob.
        what: String,
        /// The bytes that came.
        bytes: u64,
        /// The fewest allowed.
        least: u64,
        /// The time that was waited.
        period: Duration,
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
    /// No connection.
    #[error("{request}: {source}; check the host name and the network")]
    Unreachable {
        /// The request.
        request: RequestLine,
        /// The cause.
        source: ConnectionFailure,
    },
    /// The connection broke after it was made, before a response came.
    #[error("{request}: the connection broke before the response: {source}")]
    Dropped {
        /// The request.
        request: RequestLine,
        /// The cause.
        source: ConnectionFailure,
    },
    /// The TLS handshake failed.
    #[error("{request}: TLS: {source}; {}", .source.advice())]
    Tls {
        /// The request.
        request: RequestLine,
        /// The cause, with the remedy.
        source: TlsFailure,
    },
    /// The body is too short or too long, or the connection broke in the middle.
    #[error("{request}: {source}")]
    BadBody {
        /// The request.
        request: RequestLine,
        /// The defect of the body.
        source: BodyDefect,
    },
    /// The content does not have the expected digest.
    #[error(
        "{what}: the content has digest {actual}, not {expected}; the registry or a proxy before it serves damaged data"
    )]
    DigestMismatch {
        /// The object.
        what: String,
        /// The digest that was requested.
        expected: Digest,
        /// The digest of the content that came.
        actual: Digest,
    },
    /// The response violates the protocol.
    #[error(
        "{request}: {source}; this does not look like a registry that follows the OCI distribution specification"
    )]
    Protocol {
        /// The request.
        request: RequestLine,
        /// The violation.
        source: ProtocolViolation,
    },
    /// A server named a place that requests must not be led to.
    #[error("{request}: {source}")]
    Misdirected {
        /// The request.
        request: RequestLine,
        /// The rule that the place breaks.
        source: Misdirection,
    },
    /// The body exceeds the configured limit.
    #[error("{what} is larger than the limit of {limit} bytes")]
    TooLarge {
        /// The object.
        what: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// The requested range is not within the blob.
    #[error("{what}: bytes {}..{} are outside the blob of {size} bytes", .range.start, .range.end)]
    OutOfRange {
        /// The blob.
        what: String,
        /// The requested range.
        range: Range<u64>,
        /// The blob's size in bytes.
        size: u64,
    },
    /// Credentials could not be looked up.
    #[error("cannot look up credentials for {host}: {source}")]
    Credentials {
        /// The registry host.
        host: String,
        /// The cause.
        source: CredentialError,
    },
    /// The configuration or an argument is invalid.
    #[error(transparent)]
    Config(Box<Misconfiguration>),
    /// The body of an upload, or a local blob, cannot be read.
    #[error("cannot read {what}: {source}")]
    Source {
        /// The body.
        what: String,
        /// The cause.
        source: Arc<dyn Error + Send + Sync>,
    },
}

/// The kinds of failure that callers distinguish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The object does not exist (404).
    NotFound,
    /// Credentials are missing or refused (401), or could not be looked up.
    Unauthorized,
    /// The account lacks the right (403).
    Forbidden,
    /// Too many requests (429).
    TooManyRequests,
    /// Nothing arrived within a time limit.
    Timeout,
    /// No connection.
    Unreachable,
    /// The server failed (5xx).
    ServerError,
    /// A body that is too short, too long or broken.
    BadBody,
    /// Content that does not have its digest.
    DigestMismatch,
    /// A response that violates the protocol, or another 4xx.
    Protocol,
    /// Larger than the limit.
    TooLarge,
    /// An invalid argument, configuration or local file.
    Config,
}

impl RegistryError {
    /// Returns the kind of the failure.
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
            Self::Timeout { .. } | Self::TooSlow { .. } | Self::DeadlineExceeded { .. } => {
                ErrorKind::Timeout
            }
            Self::Unreachable { .. } | Self::Dropped { .. } | Self::Tls { .. } => {
                ErrorKind::Unreachable
            }
            Self::BadBody { .. } => ErrorKind::BadBody,
            Self::DigestMismatch { .. } => ErrorKind::DigestMismatch,
            Self::Protocol { .. } | Self::Misdirected { .. } => ErrorKind::Protocol,
            Self::TooLarge { .. } => ErrorKind::TooLarge,
            Self::Credentials { .. } => ErrorKind::Unauthorized,
            Self::OutOfRange { .. } | Self::Config(_) | Self::Source { .. } => ErrorKind::Config,
        }
    }

    /// Returns whether the same request may succeed a moment later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Status { status, .. } => {
                matches!(status, 408 | 425 | 429 | 500 | 502 | 503 | 504 | 520..=527)
            }
            Self::Timeout { .. }
            | Self::TooSlow { .. }
            | Self::DeadlineExceeded { .. }
            | Self::Unreachable { .. }
            | Self::Dropped { .. }
            | Self::BadBody { .. } => true,
            _ => false,
        }
    }

    /// Returns whether the registry could not be reached, did not respond in time, failed or has too
    /// many requests: requests for its other objects would fail as well.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        self.is_transient() || self.kind() == ErrorKind::Unreachable
    }

    /// Returns whether the registry refused a manifest because it does not have one of its blobs (code
    /// `MANIFEST_BLOB_UNKNOWN` of the OCI distribution specification).
    #[must_use]
    pub fn is_unknown_blob(&self) -> bool {
        matches!(
            self,
            Self::Status { status: 400 | 404, codes, .. }
                if codes.iter().any(|code| code == "MANIFEST_BLOB_UNKNOWN")
        )
    }

    /// Returns the HTTP status, if a response came.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Returns the wait that the server requests.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Returns whether the server has too many requests: 429, or another failure with which it
    /// requests a wait.
    #[must_use]
    pub fn is_throttle(&self) -> bool {
        self.kind() == ErrorKind::TooManyRequests || self.retry_after().is_some()
    }

    /// Returns whether the object does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.kind() == ErrorKind::NotFound
    }
}

impl From<Misconfiguration> for RegistryError {
    fn from(error: Misconfiguration) -> Self {
        Self::Config(Box::new(error))
    }
}

fn message_part(message: &str) -> String {
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
            "; {host} requires credentials, or refused those that it got: \
             log in with `docker login {host}` (soci also takes --user)"
        ),
        403 => format!("; the account used for {host} lacks this right"),
        404 | 410 => "; check the name, the tag and that the account may read it".to_owned(),
        429 => format!("; {host} limits the request rate, log in or try later"),
        500.. => format!("; {host} failed, try later"),
        _ => String::new(),
    }
}
