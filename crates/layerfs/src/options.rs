//! Options and errors of building a tree.

use soci_layer::{IdMaps, OverlayXattr};

/// Options of building a tree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TreeOptions {
    /// The mark of opaque directories.
    pub overlay_xattr: OverlayXattr,
    /// Leave out all extended attributes but the mark of opaque directories.
    pub disable_xattrs: bool,
    /// Owners as seen outside of a user namespace.
    pub id_maps: Option<IdMaps>,
}

impl TreeOptions {
    /// Returns the owner that the tree shows for an owner in the layer.
    pub(crate) fn owner(&self, uid: u32, gid: u32) -> (u32, u32) {
        match &self.id_maps {
            Some(maps) => maps.map(uid, gid),
            None => (uid, gid),
        }
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
    /// More than fits 32-bit positions.
    #[error("the layer's names are longer than 4 GiB or it has more than 4 billion entries")]
    TooLarge,
}
