//! Owner, permissions, extended attributes and times.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{
    AtFlags, FileType as Kind, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags, chmodat,
    chownat, fchmod, fchown, fsetxattr, futimens, lsetxattr, utimensat,
};
use rustix::io::Errno;
use soci_layer::{DirectoryAttributes, OverlayXattr};
use soci_ztoc::FileMetadata;

use super::directory::{Parent, is_directory, look, proc_path};

/// What new files have without being given it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Creation {
    overlay: OverlayXattr,
    uid: u32,
    gid: u32,
    /// The mask of this process; `None` if the mode of a new file is not certain.
    umask: Option<u32>,
}

impl Creation {
    /// Creates in this process, below a directory.
    pub(super) fn below(root: BorrowedFd<'_>, overlay: OverlayXattr) -> Self {
        let mut value = [0_u8; 1];
        // Longer ones are ERANGE.
        let acl = !matches!(
            rustix::fs::fgetxattr(root, DEFAULT_ACL, &mut value[..]),
            Err(Errno::NODATA | Errno::NOTSUP)
        );
        Self {
            overlay,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            umask: if acl { None } else { umask() },
        }
    }

    /// Records that new files may have another mode than the one they are made with.
    pub(super) const fn is_uncertain(&mut self) {
        self.umask = None;
    }

    /// The mode to make a file with.
    pub(super) const fn first_mode(&self, entry: &FileMetadata) -> u32 {
        if self.has_mode(entry) {
            entry.mode & 0o7777
        } else {
            0o600
        }
    }

    /// Whether a file has its mode when it is made with it.
    const fn has_mode(&self, entry: &FileMetadata) -> bool {
        match self.umask {
            Some(umask) => entry.mode & 0o7000 == 0 && entry.mode & 0o777 & umask == 0,
            None => false,
        }
    }

    /// Whether what is made in this directory has its owner from the start.
    fn has_owner(&self, entry: &FileMetadata, parent: &Parent) -> bool {
        (entry.uid, entry.gid) == (self.uid, self.gid) && parent.gid == self.gid
    }
}

/// The access control list that new files inherit.
const DEFAULT_ACL: &str = "system.posix_acl_default";

/// Whether directories pass an attribute on to what is made in them, instead of the umask.
pub(super) fn is_inherited(name: &[u8]) -> bool {
    name == DEFAULT_ACL.as_bytes()
}

fn umask() -> Option<u32> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Umask:"))?;
    u32::from_str_radix(line.trim(), 8).ok()
}

/// Sets the attributes of a file that was just made, and is complete.
pub(super) fn set_open(
    file: &File,
    entry: &FileMetadata,
    parent: &Parent,
    creation: Creation,
) -> io::Result<()> {
    let owned = creation.has_owner(entry, parent);
    if !owned {
        fchown(
            file,
            Some(Uid::from_raw(entry.uid)),
            Some(Gid::from_raw(entry.gid)),
        )?;
    }
    for (name, value) in xattrs(entry, creation.overlay) {
        ignore_unsupported(
            name,
            fsetxattr(file, OsStr::from_bytes(name), value, XattrFlags::empty()),
        )?;
    }
    // After the owner, whose change may clear bits of the mode.
    if !creation.has_mode(entry) || !entry.xattrs.is_empty() {
        fchmod(file, Mode::from_raw_mode(entry.mode & 0o7777))?;
    }
    Ok(futimens(file, &times(entry))?)
}

/// Sets the attributes of a name, and returns what it is. A directory's time is left to the end.
pub(super) fn set(
    parent: &Parent,
    base: &[u8],
    entry: &FileMetadata,
    creation: &mut Creation,
) -> io::Result<Stat> {
    let Some(stat) = look(parent.fd.as_fd(), base)? else {
        return Err(Errno::NOENT.into());
    };
    // The owner of a hard link is usually right already, and setting it would drop capabilities.
    if (stat.st_uid, stat.st_gid) != (entry.uid, entry.gid) {
        chownat(
            &parent.fd,
            base,
            Some(Uid::from_raw(entry.uid)),
            Some(Gid::from_raw(entry.gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
    }
    if !entry.xattrs.is_empty() {
        let path = proc_path(parent.fd.as_fd(), base);
        for (name, value) in xattrs(entry, creation.overlay) {
            if is_inherited(name) {
                creation.is_uncertain();
            }
            ignore_unsupported(
                name,
                lsetxattr(&path, OsStr::from_bytes(name), value, XattrFlags::empty()),
            )?;
        }
    }
    // Links have no permissions of their own.
    if !is_link(stat) {
        chmodat(
            &parent.fd,
            base,
            Mode::from_raw_mode(entry.mode & 0o7777),
            AtFlags::empty(),
        )?;
    }
    if !is_directory(stat) {
        set_time(parent.fd.as_fd(), base, &times(entry))?;
    }
    Ok(stat)
}

/// Copies the attributes that an implied directory has in a layer below.
pub(super) fn copy_attributes(
    directory: BorrowedFd<'_>,
    from: &DirectoryAttributes,
) -> io::Result<()> {
    let path = proc_path(directory, b"");
    std::os::unix::fs::chown(&path, Some(from.uid), Some(from.gid))?;
    for (name, value) in &from.xattrs {
        let set = rustix::fs::setxattr(&path, OsStr::from_bytes(name), value, XattrFlags::empty());
        ignore_unsupported(name, set)?;
    }
    Ok(rustix::fs::chmod(
        &path,
        Mode::from_raw_mode(from.mode & 0o7777),
    )?)
}

pub(super) fn set_time(at: BorrowedFd<'_>, name: &[u8], times: &Timestamps) -> io::Result<()> {
    Ok(utimensat(at, name, times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// containerd sets times before 1970, and those that do not fit 64 bits of nanoseconds, to 1970
/// (`boundTime`).
pub(super) fn times(entry: &FileMetadata) -> Timestamps {
    const LATEST: (i64, u32) = (9_223_372_036, 854_775_807);
    let in_bounds = |time: &(i64, u32)| (0, 0) <= *time && *time <= LATEST;
    let (seconds, nanoseconds) = entry.mtime().filter(in_bounds).unwrap_or_default();
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// Returns the attributes to set: all that do not forge a mark of overlayfs.
fn xattrs(entry: &FileMetadata, overlay: OverlayXattr) -> impl Iterator<Item = (&[u8], &[u8])> {
    entry
        .posix_xattrs()
        .filter(move |(name, _)| !overlay.is_forged(name))
}

/// Ignores that the file system does not support an attribute: the layer is unpacked without it.
fn ignore_unsupported(name: &[u8], set: rustix::io::Result<()>) -> io::Result<()> {
    match set {
        Err(Errno::NOTSUP) => {
            let name = String::from_utf8_lossy(name);
            tracing::debug!(%name, "the file system cannot hold an extended attribute of the layer");
            Ok(())
        }
        set => Ok(set?),
    }
}

fn is_link(stat: Stat) -> bool {
    Kind::from_raw_mode(stat.st_mode) == Kind::Symlink
}
