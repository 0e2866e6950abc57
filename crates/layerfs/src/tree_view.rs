//! How one mount shows a tree: all mounts of a layer share the tree itself.

use std::sync::Arc;

use soci_fuse::Attr;
use soci_layer::{IdMaps, OverlayXattr};

use crate::tree::Tree;

/// A tree as one mount shows it. Owners are mapped and attributes hidden when they are asked for.
#[derive(Debug, Clone)]
pub struct TreeView {
    tree: Arc<Tree>,
    id_maps: Option<IdMaps>,
    /// The one extended attribute that is shown.
    only_xattr: Option<OverlayXattr>,
}

impl From<Arc<Tree>> for TreeView {
    fn from(tree: Arc<Tree>) -> Self {
        Self {
            tree,
            id_maps: None,
            only_xattr: None,
        }
    }
}

impl TreeView {
    /// The same with owners as seen outside of a user namespace.
    #[must_use]
    pub fn with_id_maps(mut self, maps: Option<IdMaps>) -> Self {
        self.id_maps = maps;
        self
    }

    /// The same without extended attributes but the mark of opaque directories.
    #[must_use]
    pub const fn without_xattrs(mut self, mark: OverlayXattr) -> Self {
        self.only_xattr = Some(mark);
        self
    }

    /// The tree, which other mounts may show otherwise.
    #[must_use]
    pub const fn tree(&self) -> &Arc<Tree> {
        &self.tree
    }

    /// Attributes of an inode.
    #[must_use]
    pub fn attr(&self, ino: u64) -> Option<Attr> {
        let mut attr = self.tree.attr(ino)?;
        if let Some(maps) = &self.id_maps {
            (attr.uid, attr.gid) = maps.map(attr.uid, attr.gid);
        }
        Some(attr)
    }

    /// Attributes of the root directory.
    #[must_use]
    pub fn root_attr(&self) -> Attr {
        self.attr(soci_fuse::ROOT_ID).unwrap_or_default()
    }

    /// Whether any inode has an extended attribute that is shown. Looks at all of them.
    #[must_use]
    pub fn has_xattrs(&self) -> bool {
        let mut names = self.tree.xattr_names();
        names.any(|name| self.shows(name))
    }

    /// The extended attributes of an inode, sorted by name.
    pub fn xattrs(&self, ino: u64) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.tree.xattrs(ino).filter(|(name, _)| self.shows(name))
    }

    /// One extended attribute of an inode.
    #[must_use]
    pub fn xattr(&self, ino: u64, name: &[u8]) -> Option<&[u8]> {
        let shown = self.shows(name);
        shown.then(|| self.tree.xattr(ino, name)).flatten()
    }

    fn shows(&self, name: &[u8]) -> bool {
        let only = self.only_xattr;
        only.is_none_or(|mark| name == mark.opaque().as_bytes())
    }
}
