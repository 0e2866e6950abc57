//! Why an image could not be read, indexed or written.

use std::io;
use std::path::{Path, PathBuf};

use soci_oci::Digest;

/// What went wrong, where, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// The source is not an OCI image layout.
    #[error("{} is not an OCI image layout: {reason}", path.display())]
    NotALayout {
        /// The source.
        path: PathBuf,
        /// What is missing or wrong.
        reason: String,
    },
    /// There is nothing at the path of the source.
    #[error("failed to access input {0}: there is no file or folder {0}{1}", path.display(), registry_hint(path))]
    NoSuchPath {
        /// The source.
        path: PathBuf,
    },
    /// A file could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The verb: `open`, `read`, `create`, ….
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The bytes of a blob could not be read or passed on.
    #[error("blob {digest} of {place}: {source}")]
    Blob {
        /// The blob.
        digest: Digest,
        /// The image source.
        place: String,
        /// What the system or the registry said.
        source: io::Error,
    },
    /// A manifest names a blob that is not there.
    #[error("{place} has no blob {digest}, which its manifest names: the image is incomplete")]
    MissingBlob {
        /// The blob.
        digest: Digest,
        /// The image source.
        place: String,
    },
    /// A blob is longer or shorter than its descriptor says.
    #[error(
        "blob {digest} of {place} has {found} bytes where its descriptor says {expected}: it is truncated or damaged"
    )]
    Size {
        /// The blob.
        digest: Digest,
        /// The image source.
        place: String,
        /// Bytes by the descriptor.
        expected: u64,
        /// Bytes found.
        found: u64,
    },
    /// A blob's bytes do not have its digest.
    #[error(
        "blob {expected} of {place} has other bytes than its digest says ({found}): it is damaged"
    )]
    Digest {
        /// The digest by the descriptor.
        expected: Digest,
        /// The digest of the bytes found.
        found: Digest,
        /// The image source.
        place: String,
    },
    /// A manifest, index or configuration that cannot be understood.
    #[error("{what} {digest} of {place}: {reason}")]
    Document {
        /// `manifest`, `index`, `configuration`, `SOCI index`, `zTOC`.
        what: &'static str,
        /// The document.
        digest: Digest,
        /// The image source.
        place: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A layer is damaged.
    #[error("layer {digest}")]
    Layer {
        /// The layer.
        digest: Digest,
        /// What is wrong with it.
        source: soci_ztoc::BuildError,
    },
    /// The image does not exist for a requested platform.
    #[error(
        "the image has no manifest for platform {wanted}; it has {have} (choose with --platform, or take --all-platforms)"
    )]
    NoSuchPlatform {
        /// The requested platform.
        wanted: String,
        /// The platforms that the image has.
        have: String,
    },
    /// A platform of the image is listed, but was not pulled.
    #[error(
        "{place} lacks platform {platform}: manifest {digest}: not found (pull all platforms, or leave --all-platforms out)"
    )]
    AbsentPlatform {
        /// The platform.
        platform: String,
        /// Its manifest.
        digest: Digest,
        /// The image source.
        place: String,
    },
    /// No zTOC came out at all.
    #[error(
        "empty index: no zTOC was made because every layer was skipped (--min-layer-size 0 takes small layers too){}", skipped.iter().map(|line| format!("; {line}")).collect::<String>()
    )]
    EmptyIndex {
        /// Why the first layers were skipped.
        skipped: Vec<String>,
    },
    /// The destination directory holds something.
    #[error("destination {} is not empty: give a path that does not exist, or an empty directory", path.display())]
    DestinationNotEmpty {
        /// The destination.
        path: PathBuf,
    },
    /// The requested destination cannot be used.
    #[error("destination {}: {reason}", path.display())]
    Destination {
        /// The destination.
        path: PathBuf,
        /// Why not.
        reason: &'static str,
    },
    /// An image reference that cannot be used here.
    #[error("{text:?}: {reason}")]
    Reference {
        /// What was given.
        text: String,
        /// Why it cannot be used.
        reason: String,
    },
    /// Options that make no sense.
    #[error("{0}")]
    Options(String),
    /// The registry refused or failed.
    #[error(transparent)]
    Registry(#[from] soci_registry::RegistryError),
    /// A content store refused or failed.
    #[error("{place}: {source}")]
    Store {
        /// The store.
        place: String,
        /// What it said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Work on the disk did not finish.
    #[error(transparent)]
    Interrupted(#[from] soci_task::Interrupted),
}

/// A path that could be a reference may have been meant as one.
fn registry_hint(path: &Path) -> String {
    if path.is_absolute() || path.starts_with(".") || path.starts_with("..") {
        return String::new();
    }
    format!(
        "; an image at a registry is written docker://{}",
        path.display()
    )
}

impl IndexError {
    /// For `map_err`: names the action and the file.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}
