//! Work after the last entry: whiteouts (a file of that name may follow), the times of directories
//! (each new file changes them), and the removal of AUFS's own files.
//!
//! Directories are known by their inodes, and found by a walk through the tree that was made.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType as Kind, Gid, Mode, Timestamps, Uid, chownat, mknodat};
use soci_dirtree::{Event, Walk, remove_tree};
use soci_meter::{Meter, OverLimit};
use soci_ztoc::FileMetadata;

use super::directory::{Parent, look, proc_path};
use super::implied::Implied;
use super::metadata::{set_time, times};
use crate::ApplyError;
use crate::error::failed;

/// Prefix of whiteouts, and of files that AUFS keeps for itself.
pub(super) const WHITEOUT: &[u8] = b".wh.";
/// Memory of a whiteout without its name, and of a directory, with what the maps add.
const WHITEOUT_MEMORY: u64 = 128;
const DIRECTORY_MEMORY: u64 = 96;

/// Inode of a directory, and a name in it.
type HiddenName = (u64, Box<[u8]>);

/// Work that waits for the last entry.
#[derive(Default)]
pub(super) struct Pending {
    /// Owner of each name of lower layers that this layer hides, by inode of its directory and name.
    whiteouts: BTreeMap<HiddenName, (u32, u32)>,
    /// Times of directories, by inode.
    directories: HashMap<u64, Timestamps>,
    /// An entry lies at or below a name that AUFS keeps for itself.
    reserved: bool,
}

impl Pending {
    /// Records that there are names to remove.
    pub(super) const fn reserve(&mut self) {
        self.reserved = true;
    }

    /// Records a whiteout; the first of a name counts.
    pub(super) fn whiteout(
        &mut self,
        parent: &Parent,
        hidden: &[u8],
        owner: (u32, u32),
        meter: &mut Meter,
    ) -> Result<(), OverLimit> {
        let memory = WHITEOUT_MEMORY + hidden.len() as u64;
        meter.charge(memory)?;
        match self.whiteouts.entry((parent.inode, hidden.into())) {
            Entry::Occupied(_) => meter.release(memory),
            Entry::Vacant(vacant) => {
                vacant.insert(owner);
            }
        }
        Ok(())
    }

    /// Records a directory whose time must be set; the last of an inode counts.
    pub(super) fn directory(
        &mut self,
        inode: u64,
        entry: &FileMetadata,
        meter: &mut Meter,
    ) -> Result<(), OverLimit> {
        if !self.directories.contains_key(&inode) {
            meter.charge(DIRECTORY_MEMORY)?;
        }
        self.directories.insert(inode, times(entry));
        Ok(())
    }

    /// Forgets a directory that is about to be removed, and those in it: their inodes may be given to
    /// others.
    pub(super) fn forget(
        &mut self,
        parent: &Parent,
        base: &[u8],
        implied: &mut Implied,
        meter: &mut Meter,
    ) -> io::Result<()> {
        let mut walk = Walk::still(&proc_path(parent.fd.as_fd(), base))?;
        loop {
            let inode = rustix::fs::fstat(walk.directory())?.st_ino;
            if self.directories.remove(&inode).is_some() {
                meter.release(DIRECTORY_MEMORY);
            }
            implied.forget(inode, meter);
            while let Some(name) = self.next_whiteout(inode) {
                meter.release(WHITEOUT_MEMORY + name.len() as u64);
                self.whiteouts.remove(&(inode, name));
            }
            loop {
                match walk.step()? {
                    Some(Event::Entered) => break,
                    Some(_) => {}
                    None => return Ok(()),
                }
            }
        }
    }

    fn next_whiteout(&self, inode: u64) -> Option<Box<[u8]>> {
        let first = (inode, Box::default());
        let (key, _) = self.whiteouts.range(first..).next()?;
        (key.0 == inode).then(|| key.1.clone())
    }

    pub(super) fn finish(mut self, root: &Path) -> Result<(), ApplyError> {
        if self.whiteouts.is_empty() && self.directories.is_empty() && !self.reserved {
            return Ok(());
        }
        let read = || failed(b"/", "read what was unpacked");
        let mut walk = Walk::still(root).map_err(read())?;
        while let Some(event) = walk.step().map_err(read())? {
            match event {
                Event::Entry(_) if walk.name().to_bytes().starts_with(WHITEOUT) => {
                    let name = walk.name().to_bytes();
                    remove_tree(walk.directory(), OsStr::from_bytes(name))
                        .map_err(failed(name, "remove it"))?;
                    walk.skip();
                }
                Event::Leaving => self.leave(&walk)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes the whiteouts of a directory, and sets its time.
    fn leave(&mut self, walk: &Walk) -> Result<(), ApplyError> {
        let directory = walk.directory();
        let read = || failed(b"/", "look at what was unpacked");
        let inode = rustix::fs::fstat(directory).map_err(read())?.st_ino;
        while let Some(name) = self.next_whiteout(inode) {
            let key = (inode, name);
            let owner = self.whiteouts.remove(&key).unwrap_or_default();
            let (_, name) = key;
            make_whiteout(walk, &name, owner).map_err(failed(&name, "make its whiteout"))?;
        }
        if let Some(times) = self.directories.get(&inode) {
            let name = walk.name().to_bytes();
            set_time(directory, b".", times).map_err(failed(name, "set its time"))?;
        }
        Ok(())
    }
}

/// Makes the character device 0/0, unless the layer has the name itself.
fn make_whiteout(walk: &Walk, name: &[u8], (uid, gid): (u32, u32)) -> io::Result<()> {
    let directory = walk.directory();
    if look(directory, name)?.is_some() {
        return Ok(());
    }
    mknodat(directory, name, Kind::CharacterDevice, Mode::empty(), 0)?;
    chownat(
        directory,
        name,
        Some(Uid::from_raw(uid)),
        Some(Gid::from_raw(gid)),
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    Ok(())
}
