//! The last failure of a layer: a class, which containers may see, and the details, which they may
//! not.

use std::error::Error;

use soci_registry::{ErrorKind, RegistryError};

use crate::ReadError;
use crate::request_error::RequestError;

/// The last failure of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerFailure {
    /// What kind of failure it is; says nothing about hosts and their answers.
    pub class: FailureClass,
    /// The error in full, for the log and for operators.
    pub detail: String,
}

/// The kinds of failure that a container may tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FailureClass {
    /// No host delivers: it cannot be reached, does not answer in time, or fails.
    Unreachable,
    /// A host refuses: the layer, the account or the request.
    Refused,
    /// The bytes are not those that were indexed.
    Damaged,
    /// This node cannot store or serve the bytes.
    Local,
}

impl FailureClass {
    /// Returns the stable word for it.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Refused => "refused",
            Self::Damaged => "damaged",
            Self::Local => "local",
        }
    }

    fn of(error: &ReadError) -> Self {
        match error {
            ReadError::Source { source, .. } => Self::of_source(source.as_ref()),
            ReadError::Verification { .. } | ReadError::OutOfRange { .. } => Self::Damaged,
            ReadError::Closed | ReadError::Store(_) | ReadError::Abandoned => Self::Local,
        }
    }

    fn of_source(error: &(dyn Error + Send + Sync + 'static)) -> Self {
        let registry = match error.downcast_ref() {
            Some(RequestError::Registry(error)) => Some(error),
            Some(_) => return Self::Unreachable,
            None => error.downcast_ref::<RegistryError>(),
        };
        match registry.map(RegistryError::kind) {
            Some(
                ErrorKind::NotFound
                | ErrorKind::Unauthorized
                | ErrorKind::Forbidden
                | ErrorKind::TooManyRequests
                | ErrorKind::Protocol
                | ErrorKind::TooLarge,
            ) => Self::Refused,
            Some(ErrorKind::DigestMismatch | ErrorKind::BadBody) => Self::Damaged,
            Some(ErrorKind::Config) => Self::Local,
            _ => Self::Unreachable,
        }
    }
}

impl LayerFailure {
    /// Classifies the error of a read.
    #[must_use]
    pub fn of(error: &ReadError) -> Self {
        Self {
            class: FailureClass::of(error),
            detail: error.to_string(),
        }
    }

    /// A failure of this node.
    pub(crate) fn local(error: &impl std::fmt::Display) -> Self {
        Self {
            class: FailureClass::Local,
            detail: error.to_string(),
        }
    }
}
