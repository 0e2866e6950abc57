//! Copying of attributes (owner, permissions, extended attributes, times) with a translated owner.

use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat,
    lgetxattr, llistxattr, lsetxattr, utimensat,
};
use rustix::io::Errno;

use soci_layer::IdMaps;

/// XATTR_LIST_MAX and XATTR_SIZE_MAX (linux/limits.h), in bytes.
const MOST: usize = 64 << 10;
/// The attribute that the kernel drops when the owner changes.
const CAPABILITY: &str = "security.capability";

/// A name in an open directory; `.` is the directory itself.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    pub(super) directory: BorrowedFd<'a>,
    pub(super) name: &'a CStr,
}

impl At<'_> {
    /// The path for calls that take no directory: only its last part may be a link of the tree.
    fn path(self) -> PathBuf {
        let directory = format!("/proc/self/fd/{}", self.directory.as_raw_fd());
        PathBuf::from(directory).join(OsStr::from_bytes(self.name.to_bytes()))
    }

    fn set_owner(self, stat: &Stat, maps: &IdMaps) -> io::Result<()> {
        let (uid, gid) = maps.map(stat.st_uid, stat.st_gid);
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        Ok(chownat(
            self.directory,
            self.name,
            Some(uid),
            Some(gid),
            nofollow,
        )?)
    }

    /// Sets the permissions. Symbolic links have none of their own.
    fn set_mode(self, stat: &Stat) -> io::Result<()> {
        if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            return Ok(());
        }
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        Ok(chmodat(self.directory, self.name, mode, AtFlags::empty())?)
    }
}

/// Copies the attributes of `from`, which `stat` describes, to its copy `to`, with the owner
/// translated.
pub(super) fn copy(from: At<'_>, to: At<'_>, stat: &Stat, maps: &IdMaps) -> io::Result<()> {
    to.set_owner(stat, maps)?;
    let (source, target) = (from.path(), to.path());
    for name in names(&source)? {
        let name = OsStr::from_bytes(&name);
        let Some(value) = value(&source, name)? else {
            continue;
        };
        lsetxattr(&target, name, &value, XattrFlags::empty())?;
    }
    to.set_mode(stat)?;
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
    Ok(utimensat(to.directory, to.name, &times, nofollow)?)
}

/// Translates the owner of an existing file, and sets setuid, setgid and capabilities again, which the
/// kernel drops with the owner.
pub(super) fn change_owner(at: At<'_>, stat: &Stat, maps: &IdMaps) -> io::Result<()> {
    let capability = if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
        value(&at.path(), OsStr::new(CAPABILITY))?
    } else {
        None
    };
    at.set_owner(stat, maps)?;
    if let Some(capability) = capability {
        lsetxattr(at.path(), CAPABILITY, &capability, XattrFlags::empty())?;
    }
    if stat.st_mode & 0o6000 != 0 {
        at.set_mode(stat)?;
    }
    Ok(())
}

fn time(seconds: i64, nanoseconds: impl TryInto<i64>) -> Timespec {
    Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds.try_into().unwrap_or(0),
    }
}

fn names(path: &PathBuf) -> io::Result<Vec<Vec<u8>>> {
    let mut list = vec![0_u8; MOST];
    let length = match llistxattr(path, &mut list[..]) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => 0,
        Err(error) => return Err(error.into()),
    };
    list.truncate(length);
    let names = list.split(|byte| *byte == 0);
    Ok(names
        .filter(|name| !name.is_empty())
        .map(<[u8]>::to_vec)
        .collect())
}

fn value(path: &PathBuf, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0_u8; MOST];
    match lgetxattr(path, name, &mut value[..]) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
