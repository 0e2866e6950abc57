//! How one mount shows a tree: all mounts of a layer share the tree itself.

use std::sync::Arc;

use soci_fuse::Attr;
use soci_layer::{DirectoryAttributes, IdMaps, OverlayXattr};

use crate::implied::ImpliedDirectories;
use crate::inode::{S_IFDIR, S_IFMT};
use crate::tree::Tree;

/// A tree as one mount shows it. Owners are mapped and attributes hidden when they are requested.
#[derive(Debug, Clone)]
pub struct TreeView {
    tree: Arc<Tree>,
    id_maps: Option<IdMaps>,
    /// The one extended attribute that is shown.
    only_xattr: Option<OverlayXattr>,
    /// What directories without an entry look like on top of the layers below.
    implied: Option<Arc<ImpliedDirectories>>,
}

impl From<Arc<Tree>> for TreeView {
    fn from(tree: Arc<Tree>) -> Self {
        Self {
            tree,
            id_maps: None,
            only_xattr: None,
            implied: None,
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

    /// The same with the attributes that implied directories have in the layers below.
    #[must_use]
    pub fn with_implied(mut self, implied: Option<Arc<ImpliedDirectories>>) -> Self {
        self.implied = implied;
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
        if attr.mode & S_IFMT == S_IFDIR
            && let Some(implied) = self.implied(ino)
        {
            attr.mode = S_IFDIR | implied.mode;
            (attr.uid, attr.gid) = (implied.uid, implied.gid);
        }
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
        let implied = self.implied.iter().flat_map(|implied| implied.all());
        let implied = implied.flat_map(|attributes| &attributes.xattrs);
        let names = self.tree.xattr_names();
        let mut names = names.chain(implied.map(|(name, _)| name.as_slice()));
        names.any(|name| self.shows(name))
    }

    fn implied(&self, ino: u64) -> Option<&DirectoryAttributes> {
        self.implied.as_ref()?.get(ino)
    }

    /// The extended attributes of an inode, sorted by name.
    pub fn xattrs(&self, ino: u64) -> impl Iterator<Item = (&[u8], &[u8])> {
        let implied = self.implied(ino);
        let own = implied.is_none().then(|| self.tree.xattrs(ino));
        let implied = implied.into_iter().flat_map(|implied| &implied.xattrs);
        let implied = implied.map(|(name, value)| (name.as_slice(), value.as_slice()));
        let all = own.into_iter().flatten().chain(implied);
        all.filter(|(name, _)| self.shows(name))
    }

    /// One extended attribute of an inode.
    #[must_use]
    pub fn xattr(&self, ino: u64, name: &[u8]) -> Option<&[u8]> {
        if !self.shows(name) {
            return None;
        }
        let Some(implied) = self.implied(ino) else {
            return self.tree.xattr(ino, name);
        };
        let found = implied.xattrs.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_slice())
    }

    fn shows(&self, name: &[u8]) -> bool {
        let only = self.only_xattr;
        only.is_none_or(|mark| name == mark.opaque().as_bytes())
    }
}
