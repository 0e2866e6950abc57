//! The walk to an entry's parent directory, one name at a time. Symbolic links are read and followed
//! in this module, as if the layer's root were `/`; the kernel never follows one.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FileType as Kind, Mode, mkdirat, readlinkat};
use rustix::io::Errno;
use soci_dirtree::Descent;
use soci_layer::{LowerLayer, attributes_below};
use soci_meter::Meter;
use soci_ztoc::path_walk::{PathWalk, TooManyLinks};
use soci_ztoc::tar_path::parts;

use super::directory::{Directory, Parent, look};
use super::finish::WHITEOUT;
use super::implied::Implied;
use super::limits::{PATH_MAX, check_path, too_long};
use super::metadata::{copy_attributes, is_inherited};
use super::names::Names;
use crate::ApplyError;
use crate::error::{failed, printable};

/// Finds directories below a root.
pub(super) struct Walker<'a> {
    lower: &'a [Box<dyn LowerLayer>],
    /// Memory and steps of the whole layer.
    pub(super) meter: Meter,
    descent: Descent,
    /// The path of the descent's directory, without links and without a slash at either end.
    path: Vec<u8>,
    /// The parent of the last entry, by its path in the tar: neighbours share it.
    last: Option<(Vec<u8>, Parent)>,
    /// A directory was made whose name AUFS keeps for itself.
    pub(super) implied_reserved: bool,
    /// One was made that passes an access control list on.
    pub(super) implied_inherits: bool,
    /// Directories that were made without an entry, while the layers below are not known.
    pub(super) implied: Implied,
    /// The names that were made.
    pub(super) names: Names,
    /// Something was removed since the descent was made: the names on it may be others now.
    changed: bool,
}

/// What a name stands for.
enum Step {
    Directory,
    Link(Vec<u8>),
    Other,
    Nothing,
}

impl<'a> Walker<'a> {
    pub(super) fn open(
        root: &Path,
        lower: &'a [Box<dyn LowerLayer>],
        meter: Meter,
    ) -> Result<Self, ApplyError> {
        let descent = Descent::open(root).map_err(|source| ApplyError::Root {
            path: root.to_owned(),
            action: "open it",
            source,
        })?;
        Ok(Self {
            lower,
            meter,
            descent,
            path: Vec::new(),
            last: None,
            implied_reserved: false,
            implied_inherits: false,
            implied: Implied::default(),
            names: Names::default(),
            changed: false,
        })
    }

    /// The directory that a path leads to. Missing ones are made.
    pub(super) fn parent(&mut self, path: &[u8], entry: &[u8]) -> Result<Parent, ApplyError> {
        if let Some((known, directory)) = &self.last
            && known == path
        {
            return Ok(Arc::clone(directory));
        }
        if !self.walk(path, entry, true)? {
            return Err(not_a_directory(entry));
        }
        let directory = self.current(entry)?;
        self.last = Some((path.to_vec(), Arc::clone(&directory)));
        Ok(directory)
    }

    /// The directory that a path leads to, if it exists.
    pub(super) fn find(&mut self, path: &[u8], entry: &[u8]) -> Result<Option<Parent>, ApplyError> {
        match self.walk(path, entry, false)? {
            true => Ok(Some(self.current(entry)?)),
            false => Ok(None),
        }
    }

    /// Drops the cached parent, after something was replaced or removed.
    pub(super) fn forget(&mut self) {
        self.last = None;
        self.changed = true;
    }

    /// A directory on the file system that is written to.
    pub(super) fn directory(&self) -> BorrowedFd<'_> {
        self.descent.directory()
    }

    /// Whether the root has no entry.
    pub(super) fn is_empty(&self, root: &Path) -> Result<bool, ApplyError> {
        let mut entries = std::fs::read_dir(root).map_err(|source| ApplyError::Root {
            path: root.to_owned(),
            action: "read it",
            source,
        })?;
        Ok(entries.next().is_none())
    }

    /// The directory that a walk led to.
    fn current(&self, entry: &[u8]) -> Result<Parent, ApplyError> {
        let opened = || -> io::Result<Directory> {
            let fd = self.descent.directory().try_clone_to_owned()?;
            let stat = rustix::fs::fstat(&fd)?;
            Ok(Directory {
                fd,
                inode: stat.st_ino,
                gid: stat.st_gid,
            })
        };
        Ok(Arc::new(
            opened().map_err(failed(entry, "open its parent"))?,
        ))
    }

    /// Makes the directory that a path leads to the descent's; `false` if there is none.
    fn walk(&mut self, path: &[u8], entry: &[u8], make: bool) -> Result<bool, ApplyError> {
        if std::mem::take(&mut self.changed) {
            self.return_to(0)
                .map_err(failed(entry, "look at its parents"))?;
        }
        let mut walk = PathWalk::<Vec<u8>, ()>::new((), parts(path));
        // The descent has directories only, and their names in the tree: as long as the path has the
        // same, no look is needed.
        let mut common = self.path.len();
        let mut known = 0;
        while let Some(name) = walk.next_name() {
            self.meter.step(1)?;
            if known < common && walk.depth() < self.descent.depth() {
                let rest = self.path.get(known..).unwrap_or_default();
                let end = rest.iter().position(|byte| *byte == b'/');
                if rest.get(..end.unwrap_or(rest.len())) == Some(name.as_slice()) {
                    known += name.len() + 1;
                    walk.enter(());
                    continue;
                }
            }
            common = 0;
            self.return_to(walk.depth())
                .map_err(failed(entry, "look at its parents"))?;
            match self
                .step(&name)
                .map_err(failed(entry, "look at its parents"))?
            {
                Step::Directory => walk.enter(()),
                Step::Link(target) => {
                    walk.follow(&target)
                        .map_err(|TooManyLinks| ApplyError::TooManyLinks {
                            name: printable(entry),
                        })?;
                }
                Step::Nothing if !make => return Ok(false),
                Step::Nothing => {
                    self.imply(&name, entry)?;
                    walk.enter(());
                }
                Step::Other => return Err(not_a_directory(entry)),
            }
        }
        self.return_to(walk.depth())
            .map_err(failed(entry, "look at its parents"))?;
        Ok(true)
    }

    /// Enters a directory, or finds out what else a name in the current one stands for. Links are not
    /// followed.
    fn step(&mut self, name: &[u8]) -> io::Result<Step> {
        match self.enter(name) {
            Ok(()) => Ok(Step::Directory),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::NOENT) => Ok(Step::Nothing),
                Some(Errno::NOTDIR | Errno::LOOP) => {
                    let at = self.descent.directory();
                    match look(at, name)? {
                        Some(stat) if Kind::from_raw_mode(stat.st_mode) == Kind::Symlink => {
                            Ok(Step::Link(readlinkat(at, name, Vec::new())?.into_bytes()))
                        }
                        Some(_) => Ok(Step::Other),
                        None => Ok(Step::Nothing),
                    }
                }
                _ => Err(error),
            },
        }
    }

    fn enter(&mut self, name: &[u8]) -> io::Result<()> {
        self.descent.enter(name)?;
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name);
        Ok(())
    }

    fn return_to(&mut self, depth: usize) -> io::Result<()> {
        while self.descent.depth() > depth {
            let slash = self.path.iter().rposition(|byte| *byte == b'/');
            self.path.truncate(slash.unwrap_or(0));
            if depth == 0 {
                self.path.clear();
                return self.descent.return_to(0);
            }
            self.descent.leave()?;
        }
        Ok(())
    }

    /// Makes and enters a directory that has no entry of its own: as it is in the layers below, or
    /// 0755 of root and, below a directory with the setgid bit, of that one's group, as for containerd.
    fn imply(&mut self, part: &[u8], entry: &[u8]) -> Result<(), ApplyError> {
        // Links can lead further down than any path of the tar.
        if check_path(part).is_err() || self.path.len() + 1 + part.len() > PATH_MAX {
            return Err(too_long(entry));
        }
        self.implied_reserved |= part.starts_with(WHITEOUT);
        let layers = self.lower.len() as u64;
        self.meter
            .step(layers.saturating_mul(1 + self.descent.depth() as u64))?;
        let mut make = || -> io::Result<u64> {
            let inode = rustix::fs::fstat(self.descent.directory())?.st_ino;
            self.names.is_new(inode, part);
            mkdirat(self.descent.directory(), part, Mode::from_raw_mode(0o700))?;
            self.enter(part)?;
            let at = self.descent.directory();
            match attributes_below(self.lower, &self.path)? {
                Some(below) => {
                    self.implied_inherits |= below.xattrs.iter().any(|x| is_inherited(&x.0));
                    copy_attributes(at, &below)?;
                }
                None => rustix::fs::fchmod(at, Mode::from_raw_mode(0o755))?,
            }
            Ok(rustix::fs::fstat(at)?.st_ino)
        };
        let inode = make().map_err(failed(entry, "make its parents"))?;
        if self.lower.is_empty() {
            self.implied.add(&self.path, inode, &mut self.meter)?;
        }
        Ok(())
    }
}

fn not_a_directory(entry: &[u8]) -> ApplyError {
    ApplyError::NotADirectory {
        name: printable(entry),
    }
}
