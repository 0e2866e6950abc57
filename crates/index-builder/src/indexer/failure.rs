//! Which failures are worth another attempt.

use soci_index::IndexError;
use soci_registry::{ErrorKind, RegistryError};

/// Why an image was not indexed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It is not to be indexed.
    #[error("{0}")]
    NotWanted(String),
    /// Another attempt would fail as well: the image is damaged, or does not exist.
    #[error("{0}")]
    Permanent(String),
    /// Another attempt may succeed.
    #[error("{0}")]
    Transient(String),
}

impl Failure {
    pub(super) fn of(error: RegistryError) -> Self {
        let reason = soci_errors::chain(&error);
        if is_permanent(&error) {
            Self::Permanent(reason)
        } else {
            Self::Transient(reason)
        }
    }

    pub(super) fn of_index(error: IndexError) -> Self {
        let reason = soci_errors::chain(&error);
        match &error {
            IndexError::EmptyIndex { .. } => Self::NotWanted(reason),
            IndexError::NoSuchPlatform { .. } => Self::NotWanted(reason),
            IndexError::Registry(error) if !is_permanent(error) => Self::Transient(reason),
            IndexError::Blob { source, .. } => match soci_errors::find::<RegistryError>(source) {
                Some(error) if !is_permanent(error) => Self::Transient(reason),
                Some(_) => Self::Permanent(reason),
                // The body ended early, or is longer than the layer.
                None if source.kind() == std::io::ErrorKind::UnexpectedEof => {
                    Self::Transient(reason)
                }
                None => Self::Permanent(reason),
            },
            IndexError::Io { .. } | IndexError::Store { .. } | IndexError::Interrupted(_) => {
                Self::Transient(reason)
            }
            _ => Self::Permanent(reason),
        }
    }
}

/// Whether a request would fail in the same way later. What an account may not do now, it may later.
fn is_permanent(error: &RegistryError) -> bool {
    matches!(
        error.kind(),
        ErrorKind::NotFound
            | ErrorKind::DigestMismatch
            | ErrorKind::Protocol
            | ErrorKind::TooLarge
            | ErrorKind::Config
    ) && !error.is_transient()
        && !error.is_unknown_blob()
}
