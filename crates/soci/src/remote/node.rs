//! What a path of an image leads to.

/// A file system object of the merged image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    /// A directory: the layers' directories that make it up, uppermost first.
    Directory(Vec<At>),
    /// Anything else.
    File(At),
}

/// An inode of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct At {
    pub(crate) layer: usize,
    pub(crate) ino: u64,
}

impl Node {
    /// The inode whose attributes the node has.
    pub(crate) fn at(&self) -> Option<At> {
        match self {
            Self::Directory(all) => all.first().copied(),
            Self::File(at) => Some(*at),
        }
    }
}
