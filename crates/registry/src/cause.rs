//! What a request failed of, as types: a caller distinguishes causes without reading their texts.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use soci_errors::chain;

use crate::reach::OutOfReach;
use crate::tls_failure;

/// Why there is no connection, or why it broke.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ConnectionFailure {
    /// The HTTP client failed, below HTTP. Printed with its causes; it holds no URL.
    Client(Arc<reqwest::Error>),
    /// A registry that was addressed without TLS speaks TLS.
    SpeaksTls,
    /// A test double whose script has it fail.
    #[cfg(feature = "test-doubles")]
    Scripted(&'static str),
}

impl fmt::Display for ConnectionFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(error) => f.write_str(&chain(&**error)),
            Self::SpeaksTls => f.write_str("the registry speaks TLS"),
            #[cfg(feature = "test-doubles")]
            Self::Scripted(text) => write!(f, "scripted: {text}"),
        }
    }
}

impl std::error::Error for ConnectionFailure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Client(error) => Some(&**error),
            _ => None,
        }
    }
}

/// Why a TLS handshake failed and will fail again, in words for the operator. rustls's own
/// error is [`TlsFailure::error`]; it is not the `source()`, whose text would follow the remedy.
#[derive(Debug, Clone)]
pub struct TlsFailure(Arc<Explained>);

#[derive(Debug)]
struct Explained {
    error: rustls::Error,
    reason: String,
    advice: &'static str,
}

impl TlsFailure {
    /// Returns `None` for a failure that may not come again.
    pub(crate) fn new(error: &rustls::Error) -> Option<Self> {
        let (reason, advice) = tls_failure::explain(error)?;
        Some(Self(Arc::new(Explained {
            error: error.clone(),
            reason,
            advice,
        })))
    }

    /// Returns the error of the handshake.
    #[must_use]
    pub fn error(&self) -> &rustls::Error {
        &self.0.error
    }

    /// Returns the remedy.
    #[must_use]
    pub fn advice(&self) -> &'static str {
        self.0.advice
    }

    /// Returns whether something else than TLS answers at the port.
    #[must_use]
    pub fn is_not_tls(&self) -> bool {
        matches!(self.0.error, rustls::Error::InvalidMessage(_))
    }
}

impl fmt::Display for TlsFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.reason)
    }
}

impl std::error::Error for TlsFailure {}

/// What is wrong with a body.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum BodyDefect {
    /// The connection broke in the middle of it.
    #[error(transparent)]
    Broken(#[from] ConnectionFailure),
    /// TLS failed in the middle of it.
    #[error(transparent)]
    Tls(#[from] TlsFailure),
    /// It ended before the announced or requested number of bytes.
    #[error("the body ended {missing} bytes early")]
    EndedEarly {
        /// The bytes that did not come.
        missing: u64,
    },
    /// It continues after the announced number of bytes.
    #[error("the body is longer than announced")]
    TooLong,
    /// A part of a blob does not have the digest of the part.
    #[error("its bytes do not match its digest")]
    WrongBytes,
}

/// How a response breaks the protocol.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolViolation {
    /// More redirects than are followed; probably a loop.
    #[error("redirected more than {0} times")]
    TooManyRedirects(usize),
    /// A redirect, or the start of an upload, names no place.
    #[error("the response has no Location")]
    NoLocation,
    /// The `Location` is not a URL.
    #[error("the response's Location is not a URL")]
    InvalidLocation,
    /// The `Location` is not an HTTP URL.
    #[error("the response's Location is not an HTTP URL")]
    LocationNotHttp,
    /// The realm of a challenge is not an HTTP URL.
    #[error("the realm of its challenge is not an HTTP URL")]
    InvalidRealm,
    /// The realm of a challenge would have credentials sent without TLS.
    #[error("sending credentials to its token server without TLS is refused")]
    RealmWithoutTls,
    /// The token server's response is not JSON. The parser's error is left out: it may quote a token.
    #[error("the response of the token server is not valid JSON")]
    TokenNotJson,
    /// The token server's response holds no token.
    #[error("the response of the token server holds no token")]
    NoToken,
    /// A page for people in place of a manifest or a list.
    #[error("the response is a page for people (text/html)")]
    Page,
    /// A list that cannot be parsed.
    #[error("{what} ({source})")]
    InvalidList {
        /// What cannot be parsed, as a sentence.
        what: String,
        /// The parser's error.
        source: Arc<serde_json::Error>,
    },
    /// The body of a blob is compressed on the way.
    #[error("the body is encoded as {0:?} although identity was requested")]
    Encoded(String),
    /// The blob has another size than its descriptor says.
    #[error("the blob has {announced} bytes there, not {wanted}")]
    OtherSize {
        /// The bytes that the response announces.
        announced: u64,
        /// The size in the descriptor.
        wanted: u64,
    },
    /// A 206 response with several parts.
    #[error("a multipart 206 response")]
    Multipart,
    /// A 206 response whose `Content-Range` is missing or invalid.
    #[error("a 206 response with Content-Range {0:?}")]
    InvalidContentRange(String),
    /// A 206 response with other bytes than those requested.
    #[error("requested bytes {}-{} of {size}, got Content-Range {given:?}", .wanted.start, .wanted.end.saturating_sub(1))]
    OtherRange {
        /// The bytes that were requested.
        wanted: Range<u64>,
        /// The blob's size in bytes.
        size: u64,
        /// The header.
        given: String,
    },
    /// A `Content-Range` and a `Content-Length` that do not agree.
    #[error("Content-Range {given:?} with {length} bytes")]
    RangeAndLength {
        /// The `Content-Range`.
        given: String,
        /// The `Content-Length`.
        length: u64,
    },
    /// A status that is not a response to a GET.
    #[error("status {0} in response to a GET")]
    UnexpectedStatus(u16),
}

/// The rule that a named place breaks.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Misdirection {
    /// It is on this machine, on its link, or at the metadata service of a cloud.
    #[error(transparent)]
    OutOfReach(#[from] OutOfReach),
    /// A registry that is reached with TLS redirects to a host without.
    #[error(
        "refused to follow a redirect to a host without TLS; set plain_http_redirects = true in \
         [resolver] to allow them"
    )]
    RedirectWithoutTls,
}
