//! Our mounts that an earlier process left, for a process that serves nothing: finding and ending them.
//! The mounts themselves are never accessed: that would wait for their server.

use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, UnmountFlags, fsconfig_create, fsmount, fsopen,
};
use soci_mountinfo::{Mount, Table};

use crate::mount::{KIND, SOURCE};
use crate::{FuseError, as_in_mountinfo};

/// Where the kernel's list of FUSE connections is mounted, if it is.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// A mount of this program that its server left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaleMount {
    /// Its mount point.
    pub mountpoint: PathBuf,
    /// The number of its connection: the minor number of its device.
    connection: u32,
}

/// Lists our mounts below a folder, the newest first.
///
/// # Errors
/// If /proc/self/mountinfo cannot be read.
pub fn stale_mounts_below(folder: &Path) -> io::Result<Vec<StaleMount>> {
    Ok(ours_below(&Table::read()?, &as_in_mountinfo(folder)))
}

fn ours_below(table: &Table, folder: &Path) -> Vec<StaleMount> {
    let ours = |mount: &Mount<'_>| mount.is(KIND, SOURCE) && mount.point != folder;
    let mounts = table.under(folder).rev().filter(ours);
    let stale = mounts.map(|mount| StaleMount {
        mountpoint: mount.point.into_owned(),
        connection: mount.device.minor,
    });
    stale.collect()
}

impl StaleMount {
    /// Aborts its connection, also while other processes have it open: calls on the mount fail from now
    /// on, including those that wait. The mount stays.
    ///
    /// # Errors
    /// If the kernel's list of connections cannot be opened or written to.
    pub fn abort(&self) -> io::Result<()> {
        let name = format!("{}/abort", self.connection);
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let path = Path::new(CONNECTIONS).join(&name);
        let file = match openat(CWD, &path, flags, Mode::empty()) {
            Ok(file) => file,
            // Not mounted there: mount it where only this descriptor refers to it.
            Err(_) => {
                let context = fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
                fsconfig_create(context.as_fd())?;
                let list = fsmount(
                    context.as_fd(),
                    FsMountFlags::FSMOUNT_CLOEXEC,
                    MountAttrFlags::empty(),
                )?;
                match openat(&list, &name, flags, Mode::empty()) {
                    // It has ended already.
                    Err(rustix::io::Errno::NOENT) => return Ok(()),
                    other => other?,
                }
            }
        };
        rustix::io::write(&file, b"1")?;
        Ok(())
    }

    /// Unmounts it and aborts its connection.
    ///
    /// # Errors
    /// If umount2(2) fails.
    pub fn detach(&self) -> Result<(), FuseError> {
        // FORCE aborts the connection, DETACH works while it is in use.
        let flags = UnmountFlags::NOFOLLOW | UnmountFlags::FORCE | UnmountFlags::DETACH;
        match rustix::mount::unmount(&self.mountpoint, flags) {
            // EINVAL: not mounted any more.
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
            Err(source) => Err(FuseError::Unmount {
                mountpoint: self.mountpoint.clone(),
                source,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_mounts_below_the_folder_are_found() {
        let table = "27 1 254:0 / / rw - ext4 /dev/vda rw\n\
            40 27 0:40 / /r/s/1/fs ro,nosuid shared:3 - fuse.rawBridge soci ro\n\
            41 27 0:41 / /r/s/2\\040x ro - fuse.rawBridge soci ro\n\
            42 27 0:42 / /r/s/3 ro - fuse.sshfs soci ro\n\
            43 27 0:43 / /r/s/4 ro - fuse.rawBridge other ro\n\
            44 27 0:44 / /rest/s/5 ro - fuse.rawBridge soci ro\n\
            45 27 0:x / /r/s/6 ro - fuse.rawBridge soci ro\n";
        let table = Table::from(table.as_bytes().to_vec());
        let found = ours_below(&table, Path::new("/r"));
        let found: Vec<_> = found
            .iter()
            .map(|mount| (mount.mountpoint.to_str().unwrap(), mount.connection))
            .collect();
        assert_eq!(found, [("/r/s/2 x", 41), ("/r/s/1/fs", 40)]);
    }
}
