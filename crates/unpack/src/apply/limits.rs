//! What unpacking one layer may take, because the layer decides it.

use std::os::fd::AsFd;

use soci_dirtree::{Reserve, Space};
use soci_meter::{Limits, Meter};

use crate::ApplyError;
use crate::keys::MEMORY_KEY;

/// Longest path and link target (PATH_MAX in linux/limits.h, less the zero byte).
pub(super) const PATH_MAX: usize = 4095;
/// Longest name in a directory (NAME_MAX in linux/limits.h).
const NAME_MAX: usize = 255;
/// Bytes of output between two looks at the free space.
const SPACE_INTERVAL: u64 = 32 << 20;

/// What unpacking one layer may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnpackLimits {
    /// Bytes of memory for what must wait for the last entry, and for the window of zstd.
    pub memory: u64,
    /// Names that are looked up on the ways to all entries.
    pub steps: u64,
    /// Bytes of the uncompressed tar.
    pub output: u64,
    /// Bytes of it that any layer may have; above them it may have at most 1,100 times its compressed
    /// size, which no gzip stream exceeds.
    pub any_output: u64,
    /// The part of the disk that is not written to.
    pub reserve: Reserve,
}

impl Default for UnpackLimits {
    fn default() -> Self {
        Self {
            memory: 192 << 20,
            steps: 100_000_000,
            output: 64 << 30,
            any_output: 1 << 30,
            reserve: Reserve::default(),
        }
    }
}

impl UnpackLimits {
    pub(crate) const fn meter(&self) -> Meter {
        let limits = Limits {
            bytes: self.memory,
            steps: self.steps,
        };
        Meter::new("unpacking the layer", limits).memory_set_by(MEMORY_KEY)
    }
}

/// Counts the uncompressed bytes.
pub(super) struct Output {
    limits: UnpackLimits,
    bytes: u64,
    /// Count at which the free space is looked at again.
    next_look: u64,
}

impl Output {
    pub(super) const fn new(limits: UnpackLimits) -> Self {
        Self {
            limits,
            bytes: 0,
            next_look: 0,
        }
    }

    /// The bytes so far.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Counts bytes that are about to be written to the file system of `root`.
    pub(super) fn add(&mut self, bytes: usize, root: impl AsFd) -> Result<(), ApplyError> {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        if self.bytes > self.limits.output {
            return Err(ApplyError::TooLarge {
                limit: self.limits.output,
            });
        }
        if self.bytes < self.next_look || self.limits.reserve.percent == 0 {
            return Ok(());
        }
        self.next_look = self.bytes.saturating_add(SPACE_INTERVAL);
        match Space::of(root) {
            Ok(space) if space.spare(self.limits.reserve) < SPACE_INTERVAL => {
                Err(ApplyError::Reserve {
                    percent: self.limits.reserve.percent,
                    free: space.free,
                })
            }
            // What cannot be asked is left to ENOSPC.
            _ => Ok(()),
        }
    }
}

/// Refuses what no file system can hold, and what no path reaches.
pub(super) fn check_path(path: &[u8]) -> Result<(), ApplyError> {
    let fits = path.len() <= PATH_MAX
        && path
            .split(|byte| *byte == b'/')
            .all(|n| n.len() <= NAME_MAX);
    if fits { Ok(()) } else { Err(too_long(path)) }
}

pub(super) fn check_target(target: &[u8], name: &[u8]) -> Result<(), ApplyError> {
    if target.len() <= PATH_MAX {
        return Ok(());
    }
    Err(too_long(name))
}

pub(super) fn too_long(path: &[u8]) -> ApplyError {
    ApplyError::TooLong {
        name: crate::error::printable(path.get(..64).unwrap_or(path)),
    }
}
