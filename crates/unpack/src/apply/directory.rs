//! Directories by descriptor, and names in them.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{
    AtFlags, FileType as Kind, Mode, OFlags, Stat, openat, readlinkat, statat, unlinkat,
};
use rustix::io::Errno;

/// A directory that is open by descriptor only (O_PATH).
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) fd: OwnedFd,
    pub(super) id: DirectoryId,
}

/// A directory of the layer that an entry is made in.
pub(super) type Parent = Arc<Directory>;

/// The path of a directory and its inode, because another directory may replace it there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct DirectoryId {
    /// From the root, without links and without a slash at either end.
    pub(super) path: Vec<u8>,
    pub(super) inode: u64,
}

/// What a name stands for.
pub(super) enum Step {
    Directory(Directory),
    Link(Vec<u8>),
    Other,
    Nothing,
}

/// Opens or reads what a name in a directory stands for. Links are not followed.
pub(super) fn step(at: &Directory, part: &[u8]) -> io::Result<Step> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat(&at.fd, part, flags, Mode::empty()) {
        Ok(fd) => {
            let inode = rustix::fs::fstat(&fd)?.st_ino;
            let mut path = at.id.path.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(part);
            let id = DirectoryId { path, inode };
            Ok(Step::Directory(Directory { fd, id }))
        }
        Err(Errno::NOENT) => Ok(Step::Nothing),
        Err(Errno::NOTDIR | Errno::LOOP) => match look(at.fd.as_fd(), part)? {
            Some(stat) if Kind::from_raw_mode(stat.st_mode) == Kind::Symlink => Ok(Step::Link(
                readlinkat(&at.fd, part, Vec::new())?.into_bytes(),
            )),
            Some(_) => Ok(Step::Other),
            None => Ok(Step::Nothing),
        },
        Err(error) => Err(error.into()),
    }
}

/// The attributes of a name, if it exists. Links are not followed.
pub(super) fn look(at: BorrowedFd<'_>, name: &[u8]) -> io::Result<Option<Stat>> {
    match statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn is_directory(stat: Stat) -> bool {
    Kind::from_raw_mode(stat.st_mode) == Kind::Directory
}

/// Removes a name and, of a directory, all below it.
pub(super) fn remove(parent: &Parent, base: &[u8], stat: Stat) -> io::Result<()> {
    if is_directory(stat) {
        return soci_dirtree::remove_tree(parent.fd.as_fd(), OsStr::from_bytes(base));
    }
    Ok(unlinkat(
        &parent.fd,
        OsStr::from_bytes(base),
        AtFlags::empty(),
    )?)
}

/// The path of a name in an open directory, for calls that take no directory: nothing on it is a
/// link but the last part may be.
pub(super) fn proc_path(directory: BorrowedFd<'_>, name: &[u8]) -> PathBuf {
    let mut path = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    if !name.is_empty() {
        path.push(OsStr::from_bytes(name));
    }
    path
}
