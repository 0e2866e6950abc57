//! The nodes of a mount: the layer's tree and, in front of it, the hidden state directory.

use std::sync::Arc;

use soci_fetch::LayerData;
use soci_fuse::{Attr, Errno};

use crate::state_file::{STATE_DIRECTORY, StateFile};
use crate::tree::{DirEntry, Tree};
use crate::tree_view::TreeView;

/// Where the content of a file is.
pub(crate) enum Content {
    /// A range of the uncompressed tar; offset and length in bytes.
    Tar { start: u64, length: u64 },
    /// The state file, which is rendered on each GETATTR.
    State,
}

/// The nodes of a mount.
pub(crate) struct Nodes {
    view: TreeView,
    data: Arc<dyn LayerData>,
    state: StateFile,
}

impl Nodes {
    pub(crate) fn new(view: TreeView, data: Arc<dyn LayerData>) -> Self {
        let state = StateFile::new(&data.status().digest, view.tree().len());
        Self { view, data, state }
    }

    /// The layer's tree as this mount shows it.
    pub(crate) const fn view(&self) -> &TreeView {
        &self.view
    }

    fn tree(&self) -> &Tree {
        self.view.tree()
    }

    /// Whether the node's attributes change, so that the kernel must not cache them.
    pub(crate) const fn is_volatile(&self, ino: u64) -> bool {
        self.state.has(ino)
    }

    pub(crate) fn attr(&self, ino: u64) -> Option<Attr> {
        if self.state.has(ino) {
            Some(self.state.attr(ino, || self.data.status()))
        } else {
            self.view.attr(ino)
        }
    }

    /// Mode of a node; of the state directory and its file the type only.
    pub(crate) fn mode(&self, ino: u64) -> u32 {
        if self.state.has(ino) {
            self.state.kind(ino)
        } else {
            self.tree().mode(ino)
        }
    }

    /// The inode that a name stands for; `None` if a directory of the layer does not have it.
    ///
    /// # Errors
    /// ENOENT: the state directory does not have the name; this must not be cached. ENOTDIR and
    /// ESTALE: `parent` is not a directory, or unknown.
    pub(crate) fn lookup(&self, parent: u64, name: &[u8]) -> Result<Option<u64>, Errno> {
        // The kernel resolves a file handle: it looks up a node, also a file, by itself.
        if name == b"." && self.attr(parent).is_some() {
            return Ok(Some(parent));
        }
        if parent == self.state.directory {
            return self.state.lookup(name).map(Some).ok_or(Errno::NOENT);
        }
        if !self.tree().is_directory(parent) {
            return Err(self.not_a_directory(parent));
        }
        let found = self.tree().lookup(parent, name);
        // A layer that has the state directory's name itself shows its own.
        let is_state = parent == soci_fuse::ROOT_ID && name == STATE_DIRECTORY;
        Ok(found.or_else(|| is_state.then_some(self.state.directory)))
    }

    /// The entries of a directory from a position on. The state directory is not listed in the root.
    ///
    /// # Errors
    /// ENOTDIR and ESTALE: the node is not a directory, or unknown.
    pub(crate) fn readdir(
        &self,
        ino: u64,
        offset: u64,
    ) -> Result<impl Iterator<Item = DirEntry<'_>>, Errno> {
        let state = (ino == self.state.directory).then(|| self.state.readdir(offset));
        let tree = self.tree().readdir(ino, offset);
        if state.is_none() && tree.is_none() {
            return Err(self.not_a_directory(ino));
        }
        let state = state.into_iter().flatten();
        Ok(state.chain(tree.into_iter().flatten()))
    }

    /// Where a file's content is.
    ///
    /// # Errors
    /// EISDIR, EINVAL (neither a file nor a directory) and ESTALE (unknown).
    pub(crate) fn content(&self, ino: u64) -> Result<Content, Errno> {
        if ino == self.state.file {
            return Ok(Content::State);
        }
        if let Some((start, length)) = self.tree().extent(ino) {
            return Ok(Content::Tar { start, length });
        }
        Err(match self.attr(ino) {
            Some(_) if ino == self.state.directory || self.tree().is_directory(ino) => Errno::ISDIR,
            Some(_) => Errno::INVAL,
            None => Errno::STALE,
        })
    }

    /// Part of the state file's content.
    pub(crate) fn read_state(&self, offset: u64, size: u32) -> Vec<u8> {
        self.state.read(offset, size, || self.data.status())
    }

    /// The node's path, for the log.
    pub(crate) fn path(&self, ino: u64) -> Vec<u8> {
        if self.state.has(ino) {
            STATE_DIRECTORY.to_vec()
        } else {
            self.tree().path(ino)
        }
    }

    fn not_a_directory(&self, ino: u64) -> Errno {
        match self.attr(ino) {
            Some(_) => Errno::NOTDIR,
            None => Errno::STALE,
        }
    }
}
