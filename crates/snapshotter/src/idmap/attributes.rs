//! Copying of attributes (owner, permissions, extended attributes, times) with a translated owner.

use std::ffi::OsStr;
use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Mode, Timespec, Timestamps, XattrFlags, chmodat, lgetxattr, llistxattr,
    lsetxattr, utimensat,
};
use rustix::io::Errno;

use soci_layer::IdMaps;

/// XATTR_LIST_MAX and XATTR_SIZE_MAX (linux/limits.h), in bytes.
const MOST: usize = 64 << 10;
/// The attribute that the kernel drops when the owner changes.
const CAPABILITY: &str = "security.capability";

/// Copies the attributes of `from` to its copy `to`, with the owner translated.
pub(super) fn copy(from: &Path, to: &Path, stat: &Metadata, maps: &IdMaps) -> io::Result<()> {
    let (uid, gid) = maps.map(stat.uid(), stat.gid());
    lchown(to, Some(uid), Some(gid))?;
    for name in names(from)? {
        let name = OsStr::from_bytes(&name);
        let Some(value) = value(from, name)? else {
            continue;
        };
        lsetxattr(to, name, &value, XattrFlags::empty())?;
    }
    set_mode(to, stat)?;
    let times = Timestamps {
        last_access: time(stat.atime(), stat.atime_nsec()),
        last_modification: time(stat.mtime(), stat.mtime_nsec()),
    };
    Ok(utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Translates the owner of an existing file, and sets setuid, setgid and capabilities again, which the
/// kernel drops with the owner.
pub(super) fn change_owner(path: &Path, stat: &Metadata, maps: &IdMaps) -> io::Result<()> {
    let (uid, gid) = maps.map(stat.uid(), stat.gid());
    let capability = if stat.is_file() {
        value(path, OsStr::new(CAPABILITY))?
    } else {
        None
    };
    lchown(path, Some(uid), Some(gid))?;
    if let Some(capability) = capability {
        lsetxattr(path, CAPABILITY, &capability, XattrFlags::empty())?;
    }
    if stat.mode() & 0o6000 != 0 {
        set_mode(path, stat)?;
    }
    Ok(())
}

/// Sets the permissions. Symbolic links have none of their own.
fn set_mode(path: &Path, stat: &Metadata) -> io::Result<()> {
    if stat.is_symlink() {
        return Ok(());
    }
    let mode = Mode::from_raw_mode(stat.mode() & 0o7777);
    Ok(chmodat(CWD, path, mode, AtFlags::empty())?)
}

fn time(seconds: i64, nanoseconds: i64) -> Timespec {
    Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    }
}

fn names(path: &Path) -> io::Result<Vec<Vec<u8>>> {
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

fn value(path: &Path, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
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
