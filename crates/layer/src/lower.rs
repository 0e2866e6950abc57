//! The layers below one that is unpacked or mounted. An implied directory, which has no entry of its
//! own, has the attributes that it has there.

use std::io;

use serde::{Deserialize, Serialize};

/// Owner, permissions and extended attributes of a directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
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

/// A layer below another.
pub trait LowerLayer: Send + Sync {
    /// Looks up a path from the layer's root. Symbolic links are followed within the layer.
    ///
    /// # Errors
    /// The layer cannot be read.
    fn look(&self, path: &[u8]) -> io::Result<Lower>;
}

/// The attributes that a directory has in the nearest layer that knows its path.
///
/// `layers` are the layers below, nearest first. Opaque directories hide nothing here, as for
/// containerd.
///
/// # Errors
/// A layer cannot be read.
pub fn attributes_below(
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
