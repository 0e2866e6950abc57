//! The mounts of this mount namespace below a folder.

use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, unmount};
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
    let table = Table::read()?;
    let lazy = |mount: &Mount<'_>| mount.is("fuse.rawBridge", "soci");
    Ok(table.under(root).filter(lazy).count())
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
