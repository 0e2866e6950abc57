//! Disk space of a tree, as containerd reports it for a snapshot: allocated bytes and inodes with the
//! root, a hard-linked file counted once.

use std::collections::HashSet;
use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Stat, statat};
use rustix::io::Errno;

use crate::walk::{Event, Walk};

/// The unit of `st_blocks`, whatever the block size of the file system (stat(3type)).
const BLOCK: u64 = 512;
/// Limit of files with several names that are remembered. Of further ones each name counts for its
/// share of the file.
const MAX_LINKED: usize = 1 << 20;

/// Space that a tree takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Allocated bytes.
    pub bytes: u64,
    /// Number of inodes.
    pub inodes: u64,
}

/// Measures a tree, which may change during the walk. Entries that vanish during the walk are not counted.
///
/// # Errors
/// A directory cannot be opened or read.
pub fn measure(root: &Path) -> io::Result<Usage> {
    let mut walk = Walk::live(root)?;
    let mut total = Total::default();
    total.add(&rustix::fs::fstat(walk.directory())?);
    while let Some(event) = walk.step()? {
        if !matches!(event, Event::Entry(_)) {
            continue;
        }
        match statat(walk.directory(), walk.name(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => total.add(&stat),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(total.usage)
}

#[derive(Default)]
struct Total {
    usage: Usage,
    /// Device and inode of files with several names.
    linked: HashSet<(u64, u64)>,
}

impl Total {
    fn add(&mut self, stat: &Stat) {
        let mut bytes = u64::try_from(stat.st_blocks)
            .unwrap_or(0)
            .saturating_mul(BLOCK);
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if !is_directory && stat.st_nlink > 1 {
            if self.linked.len() < MAX_LINKED {
                if !self.linked.insert((stat.st_dev, stat.st_ino)) {
                    return;
                }
            } else if self.linked.contains(&(stat.st_dev, stat.st_ino)) {
                return;
            } else {
                #[allow(clippy::useless_conversion, reason = "the type depends on the machine")]
                let names = u64::from(stat.st_nlink);
                bytes /= names.max(1);
            }
        }
        self.usage.bytes = self.usage.bytes.saturating_add(bytes);
        self.usage.inodes = self.usage.inodes.saturating_add(1);
    }
}
