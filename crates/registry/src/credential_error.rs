//! Why credentials could not be looked up, as types. No text holds a secret.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::ProgramFailure;

/// Why credentials could not be looked up. Must not hold a secret.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialError {
    /// A credential or token with bytes that a header cannot carry.
    #[error("cannot send the credential or token in a header")]
    Unsendable,
    /// The sources need longer than a request waits for them.
    #[error("no response in time")]
    TimedOut,
    /// The configuration of Docker holds no usable credential for the registry.
    #[error("{}: {source}", .path.display())]
    Docker {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Box<DockerConfigError>,
    },
    /// A source outside this crate failed, with its own error.
    #[error("{0}")]
    Source(#[source] Arc<dyn Error + Send + Sync>),
}

impl CredentialError {
    /// Creates the error of a source outside this crate. No text of `error` or its causes may hold a
    /// secret.
    #[must_use]
    pub fn from_source(error: impl Error + Send + Sync + 'static) -> Self {
        Self::Source(Arc::new(error))
    }
}

/// Why a configuration of Docker has no usable credential.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum DockerConfigError {
    /// The file cannot be read.
    #[error(transparent)]
    Unreadable(Arc<io::Error>),
    /// The text is not a configuration of Docker. The parser's error is left out: it may quote a
    /// secret.
    #[error("not a Docker configuration: error at line {line}, column {column}")]
    Invalid {
        /// The line of the error, from 1.
        line: usize,
        /// The column of the error, from 1.
        column: usize,
    },
    /// The entry of a registry is malformed.
    #[error("the auth entry of {host} is not base64 of user:password")]
    Entry {
        /// The registry host.
        host: String,
    },
    /// A credential helper's name is not part of a file name.
    #[error("{0:?} is not the name of a credential helper")]
    HelperName(String),
    /// A credential helper did not answer in time.
    #[error("credential helper {} did not answer within {} s", .program.display(), .after.as_secs_f32())]
    HelperTimedOut {
        /// The program.
        program: PathBuf,
        /// The limit.
        after: Duration,
    },
    /// A credential helper failed.
    #[error("credential helper {} {source}", .program.display())]
    Helper {
        /// The program.
        program: PathBuf,
        /// The failure.
        source: ProgramFailure,
    },
    /// A credential helper printed something else than JSON with a credential.
    #[error("credential helper {} did not print valid JSON", .program.display())]
    HelperOutput {
        /// The program.
        program: PathBuf,
    },
}
