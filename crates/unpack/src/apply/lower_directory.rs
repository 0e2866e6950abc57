//! An unpacked layer below the one that is unpacked.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use soci_layer::{DirectoryAttributes, Lower, LowerLayer};
use soci_meter::{Limits, Meter};

use super::directory::proc_path;
use super::walk::Walker;
use crate::ApplyError;

/// Limit of names that are looked up for one path.
const MAX_STEPS: u64 = 100_000;

/// An unpacked layer, by its directory.
#[derive(Debug, Clone)]
pub struct LowerDirectory(pub PathBuf);

impl LowerLayer for LowerDirectory {
    fn look(&self, path: &[u8]) -> io::Result<Lower> {
        let limits = Limits {
            bytes: 0,
            steps: MAX_STEPS,
        };
        let meter = Meter::new("looking at a layer below", limits);
        let mut walker = Walker::open(&self.0, &[], meter).map_err(io::Error::other)?;
        let directory = match walker.find(path, path) {
            Ok(Some(directory)) => directory,
            Ok(None) => return Ok(Lower::Nothing),
            Err(ApplyError::NotADirectory { .. } | ApplyError::TooManyLinks { .. }) => {
                return Ok(Lower::Other);
            }
            Err(error) => return Err(io::Error::other(error)),
        };
        let stat = rustix::fs::fstat(&directory.fd)?;
        Ok(Lower::Directory(DirectoryAttributes {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            xattrs: xattrs(&proc_path(directory.fd.as_fd(), b""))?,
        }))
    }
}

fn xattrs(path: &Path) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    // XATTR_LIST_MAX and XATTR_SIZE_MAX (linux/limits.h) are the most that there can be.
    const MOST: usize = 64 << 10;
    let mut list = vec![0_u8; MOST];
    let length = match rustix::fs::listxattr(path, &mut list[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::NOTSUP) => 0,
        Err(error) => return Err(error.into()),
    };
    list.truncate(length);
    let mut xattrs = Vec::new();
    for name in list
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        if name.starts_with(b"trusted.") || name.starts_with(b"user.overlay.") {
            continue;
        }
        let mut value = vec![0_u8; MOST];
        let length = rustix::fs::getxattr(path, name, &mut value[..])?;
        value.truncate(length);
        xattrs.push((name.to_vec(), value));
    }
    Ok(xattrs)
}
