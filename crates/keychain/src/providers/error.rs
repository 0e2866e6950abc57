//! Why the kubelet's credential provider plugins have no credential. No text quotes a secret.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;

use soci_registry::ProgramFailure;

use super::config::FILE_GROUP;

/// Why the kubelet's credential provider plugins have no credential for an image.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialProviderError {
    /// A file of the configuration cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Arc<io::Error>,
    },
    /// A file of the configuration is refused.
    #[error("cannot use {}: {source}", .path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: ProviderConfigDefect,
    },
    /// A program could not be run to its end.
    #[error("credential provider {} {source}", .program.display())]
    Program {
        /// The program.
        program: PathBuf,
        /// The failure.
        source: ProgramFailure,
    },
    /// A program failed for an image.
    #[error("credential provider {} failed ({status}) for {image}", .program.display())]
    Failed {
        /// The program.
        program: PathBuf,
        /// Its status.
        status: ExitStatus,
        /// The image.
        image: String,
    },
    /// A program printed something else than credentials.
    #[error("credential provider {} printed {source} for {image}", .program.display())]
    Response {
        /// The program.
        program: PathBuf,
        /// What it printed.
        source: ResponseDefect,
        /// The image.
        image: String,
    },
    /// The daemon ends while the configuration is read.
    #[error(transparent)]
    Interrupted(Arc<soci_task::Interrupted>),
}

impl CredentialProviderError {
    /// Returns whether a run for another image would fail as well.
    pub(super) fn is_of_all_images(&self) -> bool {
        match self {
            // How much is printed may depend on the image.
            Self::Program { source, .. } => !matches!(source, ProgramFailure::TooMuchOutput(_)),
            Self::Failed { .. } | Self::Response { .. } => false,
            Self::Unreadable { .. } | Self::Invalid { .. } | Self::Interrupted(_) => true,
        }
    }
}

/// What is wrong with a `CredentialProviderConfig`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProviderConfigDefect {
    /// Neither YAML nor JSON of this form. The parser's error is left out: it may quote the file.
    #[error("it is not a CredentialProviderConfig in YAML or JSON")]
    Syntax,
    /// Another kind of object.
    #[error(
        "kind {kind:?} of apiVersion {api_version:?} is not a CredentialProviderConfig of {FILE_GROUP}v1"
    )]
    OtherKind {
        /// The `kind`.
        kind: String,
        /// The `apiVersion`.
        api_version: String,
    },
    /// More programs than are accepted.
    #[error("it lists more than {0} providers")]
    TooMany(usize),
    /// One of the programs is described wrongly.
    #[error("provider {name:?}: {source}")]
    Provider {
        /// The program's name.
        name: String,
        /// The defect.
        source: ProviderDefect,
    },
}

/// What is wrong with the description of a credential provider plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProviderDefect {
    /// The name leads out of the folder of the programs.
    #[error("the name is not a file name")]
    Name,
    /// A version of the protocol that is not known.
    #[error("apiVersion is not a version of credentialprovider.kubelet.k8s.io")]
    ApiVersion,
    /// The program is for no image.
    #[error("matchImages is empty")]
    NoImages,
    /// No time for which responses count.
    #[error("defaultCacheDuration is missing")]
    NoCacheDuration,
    /// A time for which responses count that is not one.
    #[error("defaultCacheDuration is not a length of time such as \"12h\"")]
    CacheDuration,
}

/// What a credential provider plugin printed in place of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResponseDefect {
    /// Something else. The parser's error is left out: it may quote a password.
    #[error("no CredentialProviderResponse")]
    Syntax,
    /// Another kind of object, or a version that was not requested.
    #[error("a response of another kind or version")]
    OtherKind,
    /// A time for which the response counts that is not one.
    #[error("a wrong cacheDuration")]
    CacheDuration,
}
