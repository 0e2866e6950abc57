//! Options and errors of building a tree.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use soci_layer::OverlayXattr;
use soci_meter::OverLimit;

/// Options of building a tree.
#[derive(Debug, Clone)]
pub struct TreeOptions {
    /// The mark of opaque directories.
    pub overlay_xattr: OverlayXattr,
    /// Leave out all extended attributes but the mark of opaque directories.
    pub disable_xattrs: bool,
    /// Most bytes of memory that building the tree takes; the zTOC itself does not count.
    pub memory: u64,
    /// The configuration key that sets this limit, for the error.
    pub memory_key: Option<&'static str>,
    /// Ends the work when it is set.
    pub cancelled: Cancelled,
}

impl Default for TreeOptions {
    fn default() -> Self {
        Self {
            overlay_xattr: OverlayXattr::default(),
            disable_xattrs: false,
            memory: u64::MAX,
            memory_key: None,
            cancelled: Cancelled::default(),
        }
    }
}

/// A flag that ends work whose result no caller waits for. Clones are the same flag.
#[derive(Debug, Clone, Default)]
pub struct Cancelled(Arc<AtomicBool>);

impl Cancelled {
    /// Ends the work.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Returns a guard that ends the work when it is dropped.
    #[must_use]
    pub fn on_drop(&self) -> CancelOnDrop {
        CancelOnDrop(self.clone())
    }

    /// Whether the work is to end.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Sets a [`Cancelled`] when it is dropped.
#[derive(Debug)]
pub struct CancelOnDrop(Cancelled);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.set();
    }
}

/// Why a layer cannot be shown. In each case containerd could not unpack it either.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TreeError {
    /// A hard link whose target is not in the layer.
    #[error("hard link {name:?} names {target:?}, which is not in the layer")]
    LinkTarget {
        /// The link.
        name: String,
        /// Its target.
        target: String,
    },
    /// A hard link to a directory.
    #[error("hard link {name:?} names the directory {target:?}")]
    LinkToDirectory {
        /// The link.
        name: String,
        /// Its target.
        target: String,
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
    /// A part of a path longer than 255 bytes or with a zero byte, a link target that is empty, or a
    /// path or target longer than 4095 bytes.
    #[error("{name:?} has a name or link target that no file system can hold")]
    BadName {
        /// The entry.
        name: String,
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
    /// A file's content reaches beyond the end of the tar.
    #[error("{name:?} lies beyond the end of the layer's tar")]
    BadExtent {
        /// The entry.
        name: String,
    },
    /// Far more directories than entries, which no image builder writes.
    #[error(
        "the layer has {entries} entries but more than {most} directories that only their names imply"
    )]
    TooManyDirectories {
        /// Entries of the zTOC.
        entries: usize,
        /// How many implied directories such a layer may have.
        most: usize,
    },
    /// More memory or steps than a layer may take.
    #[error("cannot build the file tree of the layer")]
    TooMuch(#[from] OverLimit),
    /// A file with more extended attributes than any file system keeps.
    #[error("{name:?} has more than {most} bytes of extended attributes")]
    TooManyXattrs {
        /// The file.
        name: String,
        /// The limit in bytes.
        most: usize,
    },
    /// A tar header that is far longer than names and PAX records can make it.
    #[error("{name:?} has a tar header of more than 4 MiB")]
    LongHeader {
        /// The entry.
        name: String,
    },
    /// No caller waits for the tree any more.
    #[error("building the file tree was cancelled: no caller waits for it")]
    Cancelled,
    /// More than fits 32-bit positions, or 48-bit positions in the tar.
    #[error(
        "the layer's names are longer than 4 GiB, it has more than 4 billion entries, or its tar has more than 256 TiB"
    )]
    TooLarge,
}
