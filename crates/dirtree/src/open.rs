//! Opening of a directory by its name in another one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;
use rustix::path::Arg;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Opens a directory by a path that we chose; links above its last part are followed.
pub(crate) fn at_path(path: impl Arg) -> io::Result<OwnedFd> {
    Ok(openat(CWD, path, DIRECTORY, Mode::empty())?)
}

/// Opens a directory. A symbolic link of that name is an error.
pub(crate) fn child(at: BorrowedFd<'_>, name: impl Arg) -> rustix::io::Result<OwnedFd> {
    openat(at, name, DIRECTORY, Mode::empty())
}

/// As [`child`], for what is removed: [`Errno::XDEV`] if something is mounted there.
pub(crate) fn child_of_mount(at: BorrowedFd<'_>, name: impl Arg) -> rustix::io::Result<OwnedFd> {
    let name = name.into_c_str()?;
    match openat2(at, &*name, DIRECTORY, Mode::empty(), ResolveFlags::NO_XDEV) {
        // Linux before 5.6, or a filter of system calls that is older.
        Err(Errno::NOSYS | Errno::PERM) => {
            let opened = child(at, &*name)?;
            let device = |fd: BorrowedFd<'_>| Ok::<_, Errno>(rustix::fs::fstat(fd)?.st_dev);
            if device(at)? != device(opened.as_fd())? {
                return Err(Errno::XDEV);
            }
            Ok(opened)
        }
        opened => opened,
    }
}
