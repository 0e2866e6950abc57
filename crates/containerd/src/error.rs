//! Errors of the client: which request, of which containerd, and its reason.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use containerd_client::tonic::{Code, Status, transport};
use soci_oci::Digest;

/// Why containerd did not do what was requested.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContainerdError {
    /// The socket does not exist, or no process answers on it.
    #[error("cannot connect to containerd at {address}: {}", root_cause(source))]
    Connect {
        /// Path of the socket.
        address: Arc<str>,
        /// Why the connection failed.
        source: transport::Error,
    },
    /// The namespace contains characters that a header cannot carry.
    #[error("invalid containerd namespace {0:?}")]
    Namespace(String),
    /// containerd answered with an error, or not at all.
    #[error(transparent)]
    Refused(Box<Refusal>),
    /// The response lacks a field that it must have.
    #[error("cannot {action}: containerd's response has no {missing}")]
    Incomplete {
        /// What was requested, an infinitive with its object.
        action: String,
        /// The absent field.
        missing: &'static str,
    },
    /// The bytes of a blob are not what its digest or size says.
    #[error("blob {digest}: {reason}")]
    Damaged {
        /// Digest of the blob.
        digest: Digest,
        /// How the bytes differ.
        reason: String,
    },
    /// The blob is larger than the caller accepts.
    #[error("blob {digest} has more than {limit} bytes")]
    TooLarge {
        /// Digest of the blob.
        digest: Digest,
        /// Greatest accepted size in bytes.
        limit: u64,
    },
    /// The bytes to be written could not be read from where they come from.
    #[error("blob {digest}: {source}")]
    Supply {
        /// Digest of the blob.
        digest: Digest,
        /// The error of the source; `InvalidData` if it found the bytes to be wrong.
        source: io::Error,
    },
    /// containerd did not answer in time.
    #[error("containerd did not answer within {} s", .0.as_secs())]
    Timeout(Duration),
}

impl ContainerdError {
    /// The gRPC code that containerd answered with.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused(refusal) => Some(refusal.status.code()),
            _ => None,
        }
    }
}

/// A request that containerd answered with an error.
#[derive(Debug)]
pub struct Refusal {
    pub(crate) action: String,
    pub(crate) address: Arc<str>,
    pub(crate) namespace: String,
    pub(crate) status: Status,
}

impl Refusal {
    /// The message of containerd.
    #[must_use]
    pub fn message(&self) -> &str {
        self.status.message()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (message, code) = (self.status.message(), self.status.code());
        write!(
            f,
            "cannot {} in containerd at {} (namespace {}): {message} ({code:?})",
            self.action, self.address, self.namespace
        )
    }
}

impl Error for Refusal {
    /// The status itself is left out: its text repeats the message and prints all headers.
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.status.source()
    }
}

fn root_cause(error: &transport::Error) -> String {
    let cause = soci_errors::causes(error).last().unwrap_or(error);
    cause.to_string()
}
