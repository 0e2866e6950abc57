//! The mounts of this mount namespace below a folder.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, UnmountFlags, fsconfig_create, fsmount, fsopen,
    unmount,
};
use soci_mountinfo::{Mount, Table};

/// The mount points at and below `root`, in the order in which they were mounted.
///
/// # Errors
/// When mountinfo cannot be read.
pub fn mounts_below(root: &Path) -> io::Result<Vec<PathBuf>> {
    let table = Table::read()?;
    let below = table.under(root);
    Ok(below.map(|mount| mount.point.into_owned()).collect())
}

/// How many FUSE mounts of lazy layers there are below `root`.
///
/// # Errors
/// When mountinfo cannot be read.
pub fn lazy_mounts_below(root: &Path) -> io::Result<usize> {
    lazy_connections_below(root).map(|connections| connections.len())
}

/// The FUSE connections of the mounts of lazy layers below `root`: the minor numbers of their
/// devices.
///
/// # Errors
/// When mountinfo cannot be read.
pub fn lazy_connections_below(root: &Path) -> io::Result<Vec<u32>> {
    let table = Table::read()?;
    let lazy = |mount: &Mount<'_>| mount.is("fuse.rawBridge", "soci");
    let lazy = table.under(root).filter(lazy);
    Ok(lazy.map(|mount| mount.device.minor).collect())
}

/// Number of requests of a FUSE connection that the kernel has no answer to yet.
///
/// # Errors
/// When the connection has ended, or the kernel's list of connections cannot be mounted.
pub fn unanswered_requests(connection: u32) -> io::Result<u32> {
    // Mounted for this descriptor alone: not every machine has it at /sys/fs/fuse/connections.
    let context = fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(context.as_fd())?;
    let (flags, attributes) = (FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty());
    let list = fsmount(context.as_fd(), flags, attributes)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = openat(list, format!("{connection}/waiting"), flags, Mode::empty())?;
    let mut count = String::new();
    File::from(file).read_to_string(&mut count)?;
    count.trim().parse().map_err(io::Error::other)
}

/// Unmounts everything at and below `root`, newest first, detaching what is busy.
///
/// # Errors
/// When mountinfo cannot be read, or mounts are still there after several attempts.
pub(crate) fn unmount_below(root: &Path) -> io::Result<()> {
    for _ in 0..5 {
        let points = mounts_below(root)?;
        if points.is_empty() {
            return Ok(());
        }
        for point in points.iter().rev() {
            // Already gone, or busy until what is mounted on it goes: the next round sees it.
            let _ = unmount(point.as_path(), UnmountFlags::DETACH);
        }
    }
    let left = mounts_below(root)?;
    if left.is_empty() {
        return Ok(());
    }
    Err(io::Error::other(format!("still mounted: {left:?}")))
}
