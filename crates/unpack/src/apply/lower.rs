//! The layers below the one that is unpacked. An implied directory, which has no entry of its own,
//! gets the attributes that it has there.

use std::io;

/// Owner, permissions and extended attributes of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryAttributes {
    /// Permission bits (07777).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Extended attributes but `trusted.*`.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The result of a lookup in a lower layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lower {
    /// A directory.
    Directory(DirectoryAttributes),
    /// Another kind of file, which hides what lower layers have below the path.
    Other,
    /// Nothing.
    Nothing,
}

/// A layer below the one that is unpacked.
pub trait LowerLayer: Send + Sync {
    /// Looks up a path from the layer's root. Symbolic links are followed within the layer.
    ///
    /// # Errors
    /// The layer cannot be read.
    fn look(&self, path: &[u8]) -> io::Result<Lower>;
}

/// The attributes that a directory has in the nearest layer that knows its path.
pub(super) fn attributes_below(
    layers: &[Box<dyn LowerLayer>],
    path: &[u8],
) -> io::Result<Option<DirectoryAttributes>> {
    for layer in layers {
        match layer.look(path)? {
            Lower::Directory(attributes) => return Ok(Some(attributes)),
            Lower::Other => return Ok(None),
            Lower::Nothing => {}
        }
    }
    Ok(None)
}
