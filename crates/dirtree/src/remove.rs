//! Removal of a tree, whatever its depth.
//!
//! A few levels are emptied in place, each through an open descriptor. A directory below them that is
//! not empty is moved to a folder at the top of the tree, under a number, and emptied later.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, IFlags, Mode, ioctl_getflags, ioctl_setflags, mkdirat, renameat,
    unlinkat,
};
use rustix::io::Errno;
use rustix::path::Arg;

use crate::open;

/// Levels that are emptied in place. Ordinary trees have fewer.
const LEVELS: usize = 32;
/// How often a directory is read again because entries were left, as some file systems do not list
/// all of a directory that shrinks.
const PASSES: u32 = 64;

/// Removes a file or a tree by its path, whose last part is not followed if it is a link.
///
/// # Errors
/// As [`remove_tree`].
pub fn remove_path(path: &Path) -> io::Result<()> {
    let name = path.file_name().ok_or(Errno::INVAL)?;
    let parent = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    // Links on the way to the parent are the caller's.
    let parent = std::fs::File::open(parent)?;
    remove_tree(parent.as_fd(), name)
}

/// Removes a name in a directory and, of a directory, all below it. Constant in stack and descriptors
/// whatever the depth; follows no link and crosses no mount.
///
/// What can be removed is removed even if something else cannot.
///
/// # Errors
/// The first failure. [`io::ErrorKind::NotFound`] if the name does not exist.
pub fn remove_tree(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        removed => return Ok(removed?),
    }
    let name = name.into_c_str()?;
    let top = open::child_of_mount(parent, &*name)?;
    let mut removal = Removal {
        top: top.as_fd(),
        at_top: true,
        set_aside: None,
        failure: None,
    };
    removal.directory(parent, &name);
    removal.finish(parent, &name);
    match removal.failure {
        None => Ok(()),
        Some(error) => Err(error),
    }
}

/// A removal under way.
struct Removal<'t> {
    /// The directory that is removed.
    top: BorrowedFd<'t>,
    /// The topmost directory is being emptied, not one that was set aside.
    at_top: bool,
    set_aside: Option<SetAside>,
    /// The first failure.
    failure: Option<io::Error>,
}

/// A folder in the topmost directory for directories that were too deep, by number.
struct SetAside {
    directory: OwnedFd,
    name: CString,
    count: u64,
}

/// A directory that is being emptied.
struct Level {
    entries: Dir,
    /// Name in the level above.
    name: CString,
    /// Entries were removed since it was read from its start.
    progress: bool,
    /// Something in it cannot be removed.
    stuck: bool,
    passes: u32,
}

impl Removal<'_> {
    /// Empties the directory of this name, and removes it unless it is the topmost, which may still
    /// hold what was set aside.
    fn directory(&mut self, parent: BorrowedFd<'_>, name: &CStr) {
        let mut levels = Vec::new();
        match Level::open(parent, name) {
            Ok(level) => levels.push(level),
            Err(error) => return self.failed(name, error),
        }
        while let Some(level) = levels.last_mut() {
            let entry = match level.entries.read() {
                Some(Ok(entry)) => entry,
                Some(Err(error)) => {
                    let name = level.name.clone();
                    level.stuck = true;
                    self.failed(&name, error);
                    self.leave(&mut levels, parent);
                    continue;
                }
                None => {
                    self.leave(&mut levels, parent);
                    continue;
                }
            };
            let name = entry.file_name();
            let depth = levels.len();
            if name == c"." || name == c".." || depth == 1 && self.is_set_aside(name) {
                continue;
            }
            let Some(level) = levels.last_mut() else {
                return;
            };
            if let Some(below) = self.entry(level, name, entry.file_type(), depth) {
                levels.push(below);
            }
        }
    }

    /// Removes an entry, or returns the directory that must be emptied first.
    fn entry(
        &mut self,
        level: &mut Level,
        name: &CStr,
        kind: FileType,
        depth: usize,
    ) -> Option<Level> {
        let at = match level.entries.fd() {
            Ok(at) => at,
            Err(error) => {
                level.stuck = true;
                self.failed(name, error);
                return None;
            }
        };
        let removed = if kind == FileType::Directory {
            Err(Errno::ISDIR)
        } else {
            unlinkat(at, name, AtFlags::empty())
        };
        let done = match removed {
            Err(Errno::ISDIR) if depth < LEVELS => match Level::open(at, name) {
                Ok(below) => return Some(below),
                Err(error) => Err(error),
            },
            Err(Errno::ISDIR) => self.set_aside(at, name),
            removed => removed,
        };
        match done {
            Ok(()) | Err(Errno::NOENT) => level.progress = true,
            Err(error) => {
                level.stuck = true;
                self.failed(name, error);
            }
        }
        None
    }

    /// Removes the deepest level, whose entries were all tried, and returns to the one above.
    fn leave(&mut self, levels: &mut Vec<Level>, parent: BorrowedFd<'_>) {
        let Some(mut level) = levels.pop() else {
            return;
        };
        let above = levels.last_mut();
        let at = match above.as_ref().map(|above| above.entries.fd()) {
            Some(Ok(at)) => at,
            Some(Err(error)) => return self.failed(&level.name, error),
            None => parent,
        };
        match unlinkat(at, &level.name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {
                if let Some(above) = above {
                    above.progress = true;
                }
            }
            Err(Errno::NOTEMPTY | Errno::EXIST) if level.may_have_more() => {
                level.read_again();
                levels.push(level);
            }
            Err(error) => {
                // Of the topmost directory it is the caller's to find out.
                let holds_others = above.is_none() && self.at_top && self.set_aside.is_some();
                if !level.stuck && !holds_others {
                    self.failed(&level.name, error);
                }
                if let Some(above) = above {
                    above.stuck = true;
                }
            }
        }
    }

    /// Removes what was set aside, and with it the topmost directory.
    fn finish(&mut self, parent: BorrowedFd<'_>, name: &CStr) {
        let Some(mut next) = self.set_aside.as_ref().map(|_| 0) else {
            return;
        };
        self.at_top = false;
        while let Some(aside) = self.set_aside.take() {
            if next == aside.count {
                let removed = unlinkat(self.top, &aside.name, AtFlags::REMOVEDIR)
                    .and_then(|()| unlinkat(parent, name, AtFlags::REMOVEDIR));
                if let Err(error) = removed {
                    self.failed(name, error);
                }
                return;
            }
            let directory = aside.directory.try_clone();
            self.set_aside = Some(aside);
            match (directory, numbered(next)) {
                (Ok(directory), Ok(number)) => self.directory(directory.as_fd(), &number),
                (Err(error), _) => return self.failed(name, error),
                (_, Err(error)) => return self.failed(name, error),
            }
            next += 1;
        }
    }

    /// Removes a directory if it is empty, and moves it to the top if not.
    fn set_aside(&mut self, at: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<()> {
        match unlinkat(at, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            removed => return removed,
        }
        if self.set_aside.is_none() {
            self.set_aside = Some(SetAside::make(self.top)?);
        }
        let Some(aside) = &mut self.set_aside else {
            return Err(Errno::NOTEMPTY);
        };
        renameat(at, name, &aside.directory, &*numbered(aside.count)?)?;
        aside.count += 1;
        Ok(())
    }

    fn is_set_aside(&self, name: &CStr) -> bool {
        let aside = self.set_aside.as_ref();
        self.at_top && aside.is_some_and(|aside| *aside.name == *name)
    }

    fn failed(&mut self, name: &CStr, error: impl Into<io::Error>) {
        if self.failure.is_none() {
            let error = error.into();
            let message = format!("{:?} in it: {error}", name.to_string_lossy());
            self.failure = Some(io::Error::new(error.kind(), message));
        }
    }
}

impl SetAside {
    fn make(top: BorrowedFd<'_>) -> rustix::io::Result<Self> {
        // The tree may have any names: there are at most as many attempts as it has entries.
        let mut number = 0_u64;
        let name = loop {
            let name = CString::new(format!(".soci-removed-{number}")).map_err(|_| Errno::INVAL)?;
            match mkdirat(top, &*name, Mode::RWXU) {
                Err(Errno::EXIST) => number += 1,
                made => break made.map(|()| name)?,
            }
        };
        let directory = open::child(top, &*name)?;
        // With it, directories of other project quotas could not be moved here (ext4(5), xfs_quota(8)).
        if let Ok(flags) = ioctl_getflags(&directory)
            && flags.contains(IFlags::PROJECT_INHERIT)
        {
            let _ = ioctl_setflags(&directory, flags.difference(IFlags::PROJECT_INHERIT));
        }
        Ok(Self {
            directory,
            name,
            count: 0,
        })
    }
}

impl Level {
    fn open(at: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<Self> {
        let directory = open::child_of_mount(at, name)?;
        Ok(Self {
            entries: Dir::new(directory)?,
            name: name.to_owned(),
            progress: false,
            stuck: false,
            passes: 1,
        })
    }

    fn may_have_more(&self) -> bool {
        self.progress && !self.stuck && self.passes < PASSES
    }

    fn read_again(&mut self) {
        self.entries.rewind();
        self.progress = false;
        self.passes += 1;
    }
}

fn numbered(number: u64) -> rustix::io::Result<CString> {
    CString::new(number.to_string()).map_err(|_| Errno::INVAL)
}
