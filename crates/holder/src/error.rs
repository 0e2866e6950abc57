//! The errors between a server and its holder.

use std::io;
use std::path::PathBuf;

/// Why a holder cannot be started, reached or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HolderError {
    /// An operation on a file of the holder failed.
    #[error("cannot {doing} {}: {source}", path.display())]
    Path {
        /// The verb of the operation.
        doing: &'static str,
        /// Its object.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The connection to the holder failed.
    #[error("the holder does not respond: {0}")]
    Talk(#[source] io::Error),
    /// A packet is not a message of the protocol.
    #[error("invalid message in the holder's protocol: {0}")]
    Message(String),
    /// The holder refused the request.
    #[error("the holder refused: {0}")]
    Refused(String),
    /// A process of another user than root connected.
    #[error("connection from user {0} refused: only root may connect")]
    NotRoot(u32),
    /// The holder cannot be started.
    #[error("cannot start a holder: {0}")]
    Spawn(String),
}

impl HolderError {
    pub(crate) fn path(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Path {
            doing,
            path,
            source,
        }
    }

    /// Whether the holder has not responded in time.
    pub(crate) fn is_silence(&self) -> bool {
        use io::ErrorKind::{TimedOut, WouldBlock};
        matches!(self, Self::Talk(error) if [TimedOut, WouldBlock].contains(&error.kind()))
    }

    pub(crate) fn talk(error: impl Into<io::Error>) -> Self {
        Self::Talk(error.into())
    }
}
