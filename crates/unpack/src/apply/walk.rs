//! The way to an entry's parent directory, one name at a time. Symbolic links are read and followed
//! here, as if the layer's root were `/`; the kernel is never asked to follow one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Stat, chmodat, mkdirat, openat, readlinkat, statat,
};
use rustix::io::Errno;
use soci_ztoc::path_walk::{PathWalk, TooManyLinks};
use soci_ztoc::tar_path::parts;

use super::lower::{LowerLayer, attributes_below};
use super::metadata::copy_attributes;
use super::{failed, printable};
use crate::ApplyError;

/// A directory that is open, by descriptor only: O_PATH.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) fd: OwnedFd,
    pub(super) place: Place,
}

/// Where a directory is, and which one it is: another may stand there later.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// From the root, without links and without a slash at either end.
    pub(super) path: Vec<u8>,
    pub(super) inode: u64,
}

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
        let place = Place {
            path: Vec::new(),
            inode,
        };
        Ok(Self {
            root: Arc::new(Directory { fd, place }),
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

    /// The directory that a path leads to, if it is there.
    pub(super) fn find(
        &self,
        path: &[u8],
        entry: &[u8],
    ) -> Result<Option<Arc<Directory>>, ApplyError> {
        self.walk(path, entry, false)
    }

    /// The directory at a place, if it is still the same.
    pub(super) fn at(&self, place: &Place) -> Option<Arc<Directory>> {
        let found = self.walk(&place.path, &place.path, false).ok()??;
        (found.place == *place).then_some(found)
    }

    /// Something was replaced or removed: what is known of the way may be wrong.
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
        match attributes_below(self.lower, &made.place.path)? {
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

/// What a name stands for.
pub(super) enum Step {
    Directory(Directory),
    Link(Vec<u8>),
    Other,
    Nothing,
}

/// Looks at one name in a directory.
pub(super) fn step(at: &Directory, part: &[u8]) -> io::Result<Step> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat(&at.fd, part, flags, Mode::empty()) {
        Ok(fd) => {
            let inode = rustix::fs::fstat(&fd)?.st_ino;
            let mut path = at.place.path.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(part);
            let place = Place { path, inode };
            Ok(Step::Directory(Directory { fd, place }))
        }
        Err(Errno::NOENT) => Ok(Step::Nothing),
        Err(Errno::NOTDIR | Errno::LOOP) => match look(at.fd.as_fd(), part)? {
            Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => Ok(
                Step::Link(readlinkat(&at.fd, part, Vec::new())?.into_bytes()),
            ),
            Some(_) => Ok(Step::Other),
            None => Ok(Step::Nothing),
        },
        Err(error) => Err(error.into()),
    }
}

/// What is known of a name, links not followed.
pub(super) fn look(at: BorrowedFd<'_>, name: &[u8]) -> io::Result<Option<Stat>> {
    match statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
