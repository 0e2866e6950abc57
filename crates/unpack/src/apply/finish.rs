//! Work after the last entry: whiteouts (a file of that name may follow), the times of directories
//! (each new file changes them), and the removal of AUFS's own files.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType as Kind, Gid, Mode, Timestamps, Uid, chownat, mknodat};
use soci_ztoc::FileMetadata;
use soci_ztoc::tar_path::raw_parts;

use super::directory::{DirectoryId, Parent, Step, look, remove, step};
use super::metadata::{set_time, times};
use super::walk::Walker;
use crate::ApplyError;
use crate::error::failed;

/// Prefix of whiteouts, and of files that AUFS keeps for itself.
pub(super) const WHITEOUT: &[u8] = b".wh.";

/// Work that waits for the last entry.
#[derive(Default)]
pub(super) struct Pending {
    pub(super) whiteouts: Vec<Whiteout>,
    directories: Vec<(DirectoryId, Timestamps)>,
    /// Directory and name, from the root.
    reserved: BTreeSet<(Vec<u8>, Vec<u8>)>,
}

/// A name of lower layers that this layer hides.
pub(super) struct Whiteout {
    pub(super) directory: DirectoryId,
    pub(super) name: Vec<u8>,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Pending {
    /// Records the first reserved name on the path to `name` in the directory at `path`; it is removed
    /// at the end.
    pub(super) fn reserve(&mut self, path: &[u8], name: &[u8]) {
        let mut directory = Vec::new();
        for part in raw_parts(path).chain([name]) {
            if part.starts_with(WHITEOUT) {
                self.reserved.insert((directory, part.to_vec()));
                return;
            }
            if !directory.is_empty() {
                directory.push(b'/');
            }
            directory.extend_from_slice(part);
        }
    }

    /// Records a directory whose time must be set.
    pub(super) fn directory(
        &mut self,
        parent: &Parent,
        base: &[u8],
        entry: &FileMetadata,
    ) -> io::Result<()> {
        if let Step::Directory(made) = step(parent, base)? {
            self.directories.push((made.id, times(entry)));
        }
        Ok(())
    }

    pub(super) fn finish(self, walker: &Walker<'_>) -> Result<(), ApplyError> {
        for (path, name) in &self.reserved {
            let Some(directory) = walker.find(path, name)? else {
                continue;
            };
            let removed = match look(directory.fd.as_fd(), name) {
                Ok(Some(stat)) => remove(&directory, name, stat),
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            removed.map_err(failed(name, "remove it"))?;
        }
        for whiteout in &self.whiteouts {
            whiteout
                .apply(walker)
                .map_err(failed(&whiteout.name, "make its whiteout"))?;
        }
        for (id, times) in &self.directories {
            if let Some(directory) = walker.reopen(id) {
                set_time(directory.fd.as_fd(), b".", times)
                    .map_err(failed(&id.path, "set its time"))?;
            }
        }
        Ok(())
    }
}

impl Whiteout {
    /// Makes the character device 0/0, unless the layer has the name itself.
    fn apply(&self, walker: &Walker<'_>) -> io::Result<()> {
        let Some(directory) = walker.reopen(&self.directory) else {
            return Ok(());
        };
        if look(directory.fd.as_fd(), &self.name)?.is_some() {
            return Ok(());
        }
        let name = self.name.as_slice();
        mknodat(&directory.fd, name, Kind::CharacterDevice, Mode::empty(), 0)?;
        chownat(
            &directory.fd,
            name,
            Some(Uid::from_raw(self.uid)),
            Some(Gid::from_raw(self.gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
        Ok(())
    }
}
