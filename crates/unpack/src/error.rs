//! Errors of unpacking.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use soci_layer::UnpackFault;
use soci_oci::Digest;
use soci_registry::{ErrorKind, RegistryError};

use crate::ProgramError;
use crate::keys::{FIRST_BYTE_KEY, OUTPUT_KEY};

/// Why a tar cannot be applied to a directory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// The tar is damaged, or holds an unsupported entry.
    #[error(transparent)]
    Tar(#[from] soci_ztoc::BuildError),
    /// The compressed stream is damaged.
    #[error("cannot decompress the layer: {0}")]
    Decompress(io::Error),
    /// One entry cannot be made.
    #[error("{name:?}: cannot {action}: {source}")]
    Entry {
        /// Its name in the tar.
        name: String,
        /// The action that failed.
        action: &'static str,
        /// Its cause.
        source: io::Error,
    },
    /// A parent of an entry is a file.
    #[error("{name:?} lies below something that is not a directory")]
    NotADirectory {
        /// The entry.
        name: String,
    },
    /// More symbolic links on the way than the kernel follows.
    #[error("{name:?} is reached through too many symbolic links")]
    TooManyLinks {
        /// The entry.
        name: String,
    },
    /// The target of a hard link is not in the layer.
    #[error("hard link {name:?} names {target:?}, which is not in the layer")]
    LinkTarget {
        /// The link.
        name: String,
        /// Its target.
        target: String,
    },
    /// A device number that Linux does not have.
    #[error("{name:?} has the device number {major}:{minor}, which Linux does not have")]
    BadDevice {
        /// The entry.
        name: String,
        /// Major part.
        major: i64,
        /// Minor part.
        minor: i64,
    },
    /// The directory to unpack into cannot be used.
    #[error("{}: cannot {action}: {source}", path.display())]
    Root {
        /// The directory.
        path: PathBuf,
        /// The action that failed.
        action: &'static str,
        /// Its cause.
        source: io::Error,
    },
    /// A path, a part of one or a link target that no file system can hold, or no path reach.
    #[error(
        "{name:?}: paths of more than 4095 bytes, or with parts of more than 255, cannot be unpacked"
    )]
    TooLong {
        /// The beginning of the entry's name.
        name: String,
    },
    /// The layer needs more memory or steps than it may take.
    #[error(transparent)]
    OverLimit(#[from] soci_meter::OverLimit),
    /// The uncompressed layer is larger than the limit.
    #[error("the uncompressed layer has more than {limit} bytes; {OUTPUT_KEY} sets the limit")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// The compressed layer is a bomb.
    #[error(
        "the layer decompresses to more than {ratio} times its size, and more than {least} bytes"
    )]
    Bomb {
        /// The limit of the ratio.
        ratio: u64,
        /// Output below which the ratio does not matter.
        least: u64,
    },
    /// The disk is nearly full.
    #[error(
        "the disk has {free} bytes left, and {percent} percent are reserved; \
         layer_store.min_free_percent sets the reserve"
    )]
    Reserve {
        /// The reserve.
        percent: u8,
        /// Free bytes.
        free: u64,
    },
    /// The caller cancelled.
    #[error("unpacking was cancelled")]
    Cancelled,
}

impl ApplyError {
    /// Returns where the fault lies.
    #[must_use]
    pub fn fault(&self) -> UnpackFault {
        match self {
            Self::Entry { source, .. } | Self::Root { source, .. } => fault_of(source),
            Self::Reserve { .. } => UnpackFault::Space,
            Self::Cancelled => UnpackFault::Passing,
            _ => UnpackFault::Image,
        }
    }
}

/// Returns where the fault of a file operation lies.
pub fn fault_of(error: &io::Error) -> UnpackFault {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => UnpackFault::Space,
        _ => UnpackFault::Passing,
    }
}

/// Why a layer cannot be fetched and unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnpackError {
    /// The manifest, the configuration or the layer cannot be fetched.
    #[error("{what}: {source}")]
    Registry {
        /// The operation that failed.
        what: &'static str,
        /// Its cause.
        source: RegistryError,
    },
    /// Manifest and configuration do not belong to this layer, or to each other.
    #[error("image manifest {manifest}: {reason}")]
    Image {
        /// The manifest.
        manifest: Digest,
        /// What is wrong.
        reason: String,
    },
    /// The layer's tar cannot be applied.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The uncompressed layer is not what the image configuration says.
    #[error(
        "the uncompressed layer has digest {actual}, but the image configuration says {expected}"
    )]
    DiffId {
        /// What the configuration says.
        expected: Digest,
        /// What was unpacked.
        actual: Digest,
    },
    /// The compressed layer on this machine is not what the manifest says.
    #[error("the compressed layer has digest {actual}, but the image manifest says {expected}")]
    Digest {
        /// What the manifest says.
        expected: Digest,
        /// What was read.
        actual: Digest,
    },
    /// The compressed layer cannot be read on this machine.
    #[error("cannot read the layer: {0}")]
    Local(io::Error),
    /// The compressed layer cannot be stored.
    #[error("cannot store the compressed layer: {0}")]
    Store(io::Error),
    /// A configured program does not decompress the layer.
    #[error("cannot decompress the layer with {}: {source}", path.display())]
    Program {
        /// The program.
        path: PathBuf,
        /// Its failure.
        source: ProgramError,
    },
    /// No thread can be started.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// The scratch folder cannot be used.
    #[error("{}: cannot {action}: {source}", path.display())]
    Scratch {
        /// The folder.
        path: PathBuf,
        /// The action that failed.
        action: &'static str,
        /// Its cause.
        source: io::Error,
    },
    /// Others hold all slots.
    #[error("no slot to {what} was free for {} seconds{}", waited.as_secs(), set_by(*key))]
    Slot {
        /// What the slot is for.
        what: &'static str,
        /// Longest wait.
        waited: Duration,
        /// The configuration key that sets it.
        key: Option<&'static str>,
    },
    /// The registry did not say in time what the layer is.
    #[error("the image's manifest did not come within {} seconds; {FIRST_BYTE_KEY} sets the limit", waited.as_secs())]
    Slow {
        /// Longest wait.
        waited: Duration,
    },
    /// The caller cancelled.
    #[error("unpacking was cancelled")]
    Cancelled,
    /// A thread of ours panicked.
    #[error("unpacking panicked: {0}")]
    Interrupted(#[from] soci_task::Interrupted),
}

impl UnpackError {
    /// Returns whether the registry could not be reached or did not work: other layers of the image
    /// would fail as well.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Registry { source, .. } => source.is_outage(),
            Self::Slow { .. } => true,
            _ => false,
        }
    }

    /// Returns where the fault lies.
    #[must_use]
    pub fn fault(&self) -> UnpackFault {
        match self {
            _ if self.is_damage() => UnpackFault::Image,
            Self::Image { .. } | Self::DiffId { .. } | Self::Digest { .. } => UnpackFault::Image,
            Self::Apply(error) => error.fault(),
            Self::Local(source) | Self::Store(source) | Self::Scratch { source, .. } => {
                fault_of(source)
            }
            _ => UnpackFault::Passing,
        }
    }

    /// Whether the bytes that came were not the layer's.
    pub(crate) fn is_damage(&self) -> bool {
        let Self::Registry { source, .. } = self else {
            return false;
        };
        source.kind() == ErrorKind::DigestMismatch
    }
}

fn set_by(key: Option<&str>) -> String {
    key.map_or(String::new(), |key| format!("; {key} sets the limit"))
}

/// A name as text for an error.
pub(crate) fn printable(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

/// Converts an I/O error to [`ApplyError::Entry`].
pub(crate) fn failed<E: Into<io::Error>>(
    name: &[u8],
    action: &'static str,
) -> impl FnOnce(E) -> ApplyError {
    let name = printable(name.get(..name.len().min(4096)).unwrap_or_default());
    move |source| ApplyError::Entry {
        name,
        action,
        source: source.into(),
    }
}
