//! The layers below the one that is unpacked: a directory that only the names of others imply looks
//! as it does there.

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;

use super::metadata::proc_path;
use super::walk::Walker;
use crate::ApplyError;

/// Owner, permissions and extended attributes of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryAttributes {
    /// Permission bits (07777).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Extended attributes but `trusted.*`.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a layer has under a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lower {
    /// A directory.
    Directory(DirectoryAttributes),
    /// Something else: what lies below it is hidden.
    Other,
    /// Nothing.
    Nothing,
}

/// A layer below.
pub trait LowerLayer: Send + Sync {
    /// What the layer has under a path from its root, symbolic links followed within it.
    ///
    /// # Errors
    /// It cannot be read.
    fn look(&self, path: &[u8]) -> io::Result<Lower>;
}

/// An unpacked layer.
#[derive(Debug, Clone)]
pub struct LowerDirectory(pub PathBuf);

impl LowerLayer for LowerDirectory {
    fn look(&self, path: &[u8]) -> io::Result<Lower> {
        let walker = Walker::open(&self.0, &[]).map_err(io::Error::other)?;
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

fn xattrs(path: &std::path::Path) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
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

/// The attributes that a directory has in the nearest layer that knows its path.
pub(super) fn attributes_below(
    layers: &[Box<dyn LowerLayer>],
    path: &[u8],
) -> io::Result<Option<DirectoryAttributes>> {
    for layer in layers {
        match layer.look(path)? {
            Lower::Directory(attributes) => return Ok(Some(attributes)),
            Lower::Other => return Ok(None),
            Lower::Nothing => {}
        }
    }
    Ok(None)
}
