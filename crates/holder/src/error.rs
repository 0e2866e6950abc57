//! What can go wrong between a server and its holder.

use std::io;
use std::path::PathBuf;

/// Why a holder cannot be started, reached or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HolderError {
    /// Reading or writing something of the holder's failed.
    #[error("cannot {doing} {}: {source}", path.display())]
    Path {
        /// What was tried.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Talking to the holder failed.
    #[error("the holder does not answer: {0}")]
    Talk(#[source] io::Error),
    /// What came is no message of the protocol.
    #[error("a message of the holder's protocol cannot be understood: {0}")]
    Message(String),
    /// The holder says no.
    #[error("the holder refuses: {0}")]
    Refused(String),
    /// Another program may not talk to it.
    #[error("a process of user {0} asked, and only root may")]
    NotRoot(u32),
    /// The process cannot be started.
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

    pub(crate) fn talk(error: impl Into<io::Error>) -> Self {
        Self::Talk(error.into())
    }
}
