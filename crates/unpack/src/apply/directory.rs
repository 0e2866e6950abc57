//! Directories by descriptor, and names in them.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType as Kind, Stat, statat, unlinkat};
use rustix::io::Errno;

/// An open directory.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) fd: OwnedFd,
    pub(super) inode: u64,
    /// Its group.
    pub(super) gid: u32,
}

/// A directory of the layer that an entry is made in.
pub(super) type Parent = Arc<Directory>;

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
    let base = OsStr::from_bytes(base);
    if is_directory(stat) {
        return soci_dirtree::remove_tree(parent.fd.as_fd(), base);
    }
    Ok(unlinkat(&parent.fd, base, AtFlags::empty())?)
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
