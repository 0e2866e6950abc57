//! Path resolution in a tree, as the kernel does it in a chroot.

use soci_ztoc::path_walk::{PathWalk, TooManyLinks};
use soci_ztoc::tar_path::raw_parts;

use crate::tree::Tree;

/// Why a path does not lead to an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// A component does not exist (ENOENT).
    #[error("no such file or directory")]
    NotFound,
    /// A component before the last one is not a directory (ENOTDIR).
    #[error("not a directory")]
    NotADirectory,
    /// The path leads through more than 40 symbolic links (ELOOP).
    #[error(transparent)]
    TooManyLinks(#[from] TooManyLinks),
}

impl Tree {
    /// Resolves a path from the root to an inode number.
    ///
    /// Symbolic links on the way are followed within the layer, one at the end of the path only if
    /// `follow`. `..` in the root is the root. Slashes at the end of a path have no meaning.
    ///
    /// # Errors
    /// The path does not lead to an inode.
    pub fn resolve(&self, path: &[u8], follow: bool) -> Result<u64, ResolveError> {
        let mut walk = PathWalk::<&[u8], u64>::new(soci_fuse::ROOT_ID, raw_parts(path));
        while let Some(name) = walk.next_name() {
            let found = self.lookup(*walk.directory(), name);
            let ino = found.ok_or(ResolveError::NotFound)?;
            if self.is_directory(ino) {
                walk.enter(ino);
                continue;
            }
            match self.readlink(ino) {
                Some(target) if follow || !walk.is_at_end() => walk.follow(target)?,
                _ if walk.is_at_end() => return Ok(ino),
                _ => return Err(ResolveError::NotADirectory),
            }
        }
        Ok(walk.into_directory())
    }
}
