//! Why a look-up found no index.

use soci_layer::{Cause, LayerRefusal};
use soci_registry::{ErrorKind, RegistryError};

/// The reason why no index was found. The sentence does not repeat the causes.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NoIndex {
    /// The policy allows no look-up.
    #[error(
        "[pull_modes.soci_v1] and [pull_modes.soci_v2] are disabled; with explicit_index = true in \
         [trust] an index that the client names would be used"
    )]
    Disabled,
    /// The image has no index of an allowed kind, or a dangling or unreadable one.
    #[error("{reason}")]
    NotIndexed {
        /// Where the index was looked for and what was found.
        reason: String,
        /// Why an index that exists cannot be used.
        source: Option<Cause>,
    },
    /// The registry failed, so that it is unknown whether the image has an index.
    #[error("cannot read {object}")]
    Unavailable {
        /// The object that was requested.
        object: String,
        /// The failure of the registry.
        source: RegistryError,
    },
}

impl NoIndex {
    /// Sorts the failure of a request for `object`: the registry does not have it or has it
    /// damaged, or the registry failed.
    pub(crate) fn unreadable(object: String, error: RegistryError) -> Self {
        match error.kind() {
            ErrorKind::NotFound => Self::not_indexed(format!("missing {object}"), error),
            ErrorKind::DigestMismatch | ErrorKind::TooLarge => {
                Self::not_indexed(format!("unusable {object}"), error)
            }
            _ => Self::Unavailable {
                object,
                source: error,
            },
        }
    }

    pub(crate) fn not_indexed(
        reason: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::NotIndexed {
            reason: reason.into(),
            source: Some(Cause::from(source.into())),
        }
    }
}

impl From<NoIndex> for LayerRefusal {
    fn from(none: NoIndex) -> Self {
        match none {
            NoIndex::Disabled => Self::Disabled {
                reason: none.to_string(),
            },
            NoIndex::NotIndexed { reason, source } => Self::NotIndexed { reason, source },
            NoIndex::Unavailable { ref source, .. } => Self::IndexUnavailable {
                unreachable: source.is_outage(),
                source: Cause::from(Box::<dyn std::error::Error + Send + Sync>::from(none)),
            },
        }
    }
}
