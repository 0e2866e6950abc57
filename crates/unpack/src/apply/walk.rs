//! The walk to an entry's parent directory, one name at a time. Symbolic links are read and followed
//! in this module, as if the layer's root were `/`; the kernel never follows one.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, chmodat, mkdirat, openat};
use rustix::io::Errno;
use soci_ztoc::path_walk::{PathWalk, TooManyLinks};
use soci_ztoc::tar_path::parts;

use super::directory::{Directory, DirectoryId, Step, step};
use super::lower::{LowerLayer, attributes_below};
use super::metadata::copy_attributes;
use crate::ApplyError;
use crate::error::{failed, printable};

/// Finds directories below a root.
pub(super) struct Walker<'a> {
    root: Arc<Directory>,
    lower: &'a [Box<dyn LowerLayer>],
    /// The parent of the last entry, by its path in the tar: neighbours share it.
    last: Option<(Vec<u8>, Arc<Directory>)>,
}

impl<'a> Walker<'a> {
    pub(super) fn open(root: &Path, lower: &'a [Box<dyn LowerLayer>]) -> Result<Self, ApplyError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = openat(CWD, root, flags, Mode::empty())
            .and_then(|fd| Ok((rustix::fs::fstat(&fd)?.st_ino, fd)));
        let (inode, fd) = opened.map_err(|error| ApplyError::Root {
            path: root.to_owned(),
            action: "open it",
            source: error.into(),
        })?;
        let id = DirectoryId {
            path: Vec::new(),
            inode,
        };
        Ok(Self {
            root: Arc::new(Directory { fd, id }),
            lower,
            last: None,
        })
    }

    /// The directory that a path leads to. Missing ones are made.
    pub(super) fn parent(
        &mut self,
        path: &[u8],
        entry: &[u8],
    ) -> Result<Arc<Directory>, ApplyError> {
        if let Some((known, directory)) = &self.last
            && known == path
        {
            return Ok(Arc::clone(directory));
        }
        let directory = self
            .walk(path, entry, true)?
            .ok_or_else(|| not_a_directory(entry))?;
        self.last = Some((path.to_vec(), Arc::clone(&directory)));
        Ok(directory)
    }

    /// The directory that a path leads to, if it exists.
    pub(super) fn find(
        &self,
        path: &[u8],
        entry: &[u8],
    ) -> Result<Option<Arc<Directory>>, ApplyError> {
        self.walk(path, entry, false)
    }

    /// Opens a directory again, if its path still leads to it.
    pub(super) fn reopen(&self, id: &DirectoryId) -> Option<Arc<Directory>> {
        let found = self.walk(&id.path, &id.path, false).ok()??;
        (found.id == *id).then_some(found)
    }

    /// Drops the cached parent, after something was replaced or removed.
    pub(super) fn forget(&mut self) {
        self.last = None;
    }

    /// Waits until everything is on disk.
    pub(super) fn sync(&self, root: &Path) -> Result<(), ApplyError> {
        // syncfs(2) takes no O_PATH descriptor.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(&self.root.fd, c".", flags, Mode::empty())
            .and_then(rustix::fs::syncfs)
            .map_err(|error| ApplyError::Root {
                path: root.to_owned(),
                action: "write it to disk",
                source: error.into(),
            })
    }

    fn walk(
        &self,
        path: &[u8],
        entry: &[u8],
        make: bool,
    ) -> Result<Option<Arc<Directory>>, ApplyError> {
        let mut walk = PathWalk::<Vec<u8>, _>::new(Arc::clone(&self.root), parts(path));
        while let Some(name) = walk.next_name() {
            let at = walk.directory();
            match step(at, &name).map_err(failed(entry, "look at its parents"))? {
                Step::Directory(next) => walk.enter(Arc::new(next)),
                Step::Link(target) => {
                    walk.follow(&target)
                        .map_err(|TooManyLinks| ApplyError::TooManyLinks {
                            name: printable(entry),
                        })?;
                }
                Step::Nothing if !make => return Ok(None),
                Step::Nothing => {
                    let made = self.imply(at, &name);
                    let made = made.map_err(failed(entry, "make its parents"))?;
                    walk.enter(Arc::new(made));
                }
                Step::Other => return Err(not_a_directory(entry)),
            }
        }
        Ok(Some(walk.into_directory()))
    }

    /// Makes a directory that has no entry of its own: as it is in the layers below, or 0755 of root
    /// and, below a directory with the setgid bit, of that one's group, as for containerd.
    fn imply(&self, at: &Directory, part: &[u8]) -> io::Result<Directory> {
        mkdirat(&at.fd, part, Mode::from_raw_mode(0o700))?;
        let Step::Directory(made) = step(at, part)? else {
            return Err(Errno::NOTDIR.into());
        };
        match attributes_below(self.lower, &made.id.path)? {
            Some(below) => copy_attributes(&made, &below)?,
            None => chmodat(&at.fd, part, Mode::from_raw_mode(0o755), AtFlags::empty())?,
        }
        Ok(made)
    }
}

fn not_a_directory(entry: &[u8]) -> ApplyError {
    ApplyError::NotADirectory {
        name: printable(entry),
    }
}
