//! Free space of the file system that a tree is in, and the part of it that is left alone.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::StatVfs;

/// Largest reserve of 10 percent, in bytes. On large disks a percentage alone would leave a lot
/// unused.
const MOST_AT_TEN: u64 = 16 << 30;

/// The part of a file system that is kept free.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reserve {
    /// Percentage of its size, and of its inodes; 16 GiB at 10 percent are the most.
    pub percent: u8,
}

/// Space on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Its size in bytes.
    pub total: u64,
    /// Free bytes, as for processes without privileges.
    pub free: u64,
    /// Its inodes; 0 if it makes them as needed.
    pub inodes: u64,
    /// Free inodes.
    pub free_inodes: u64,
}

impl Space {
    /// Looks up the file system that a path is on.
    ///
    /// # Errors
    /// The path cannot be opened, or its file system not be asked.
    pub fn at(path: &Path) -> io::Result<Self> {
        Ok(rustix::fs::statvfs(path)?.into())
    }

    /// Looks up the file system that an open file is on.
    ///
    /// # Errors
    /// The file system cannot be asked.
    pub fn of(file: impl AsFd) -> io::Result<Self> {
        Ok(rustix::fs::fstatvfs(file)?.into())
    }

    /// Bytes that may be written without touching the reserve; 0 also if its inodes are touched.
    #[must_use]
    pub fn spare(&self, reserve: Reserve) -> u64 {
        let percent = u64::from(reserve.percent);
        let kept_inodes = self.inodes / 100 * percent;
        if self.inodes > 0 && percent > 0 && self.free_inodes <= kept_inodes {
            return 0;
        }
        self.free.saturating_sub(self.kept(reserve))
    }

    /// Bytes that are missing from the reserve.
    #[must_use]
    pub fn shortage(&self, reserve: Reserve) -> u64 {
        self.kept(reserve).saturating_sub(self.free)
    }

    fn kept(&self, reserve: Reserve) -> u64 {
        let percent = u64::from(reserve.percent);
        (self.total / 100 * percent).min(MOST_AT_TEN * percent / 10)
    }
}

impl From<StatVfs> for Space {
    fn from(found: StatVfs) -> Self {
        Self {
            total: found.f_blocks.saturating_mul(found.f_frsize),
            free: found.f_bavail.saturating_mul(found.f_frsize),
            inodes: found.f_files,
            free_inodes: found.f_favail,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_reserve_is_a_share_of_small_disks_and_limited_on_large_ones() {
        let space = |total: u64, free: u64| Space {
            total: total * GIB,
            free: free * GIB,
            inodes: 1000,
            free_inodes: 500,
        };
        let reserve = Reserve { percent: 10 };
        assert_eq!(space(100, 50).spare(reserve) / GIB, 40);
        assert_eq!(space(100, 9).spare(reserve), 0);
        assert_eq!(space(100, 9).shortage(reserve), GIB);
        assert_eq!(space(100, 11).shortage(reserve), 0);
        assert_eq!(space(10_000, 50).spare(reserve), 34 * GIB);
        assert_eq!(space(100, 9).spare(Reserve::default()), 9 * GIB);
        let no_inodes = Space {
            free_inodes: 100,
            ..space(100, 50)
        };
        assert_eq!(no_inodes.spare(reserve), 0);
    }
}
