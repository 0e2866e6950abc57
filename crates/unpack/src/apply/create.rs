//! Creation of the file that an entry describes.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{
    AtFlags, FileType as Kind, Mode, XattrFlags, linkat, mkdirat, mknodat, symlinkat,
};
use soci_ztoc::{FileMetadata, FileType};

use super::directory::{Parent, is_directory, look, proc_path, remove};
use super::file_writers::{SMALL, SmallFile, make};
use super::{Applier, metadata};
use crate::ApplyError;
use crate::error::{failed, printable};

impl Applier<'_> {
    /// Creates the entry under this name. An existing file of that name is removed first, unless both
    /// are directories.
    pub(super) fn create(
        &mut self,
        parent: &Parent,
        base: &[u8],
        entry: FileMetadata,
    ) -> Result<(), ApplyError> {
        let merge = match self.walker.names.is_new(parent.inode, base) {
            true => false,
            false => self.make_way(parent, base, &entry)?,
        };
        let name = entry.name.as_slice();
        match entry.file_type {
            FileType::Reg => return self.file(parent, base, entry),
            FileType::Dir if merge => {}
            FileType::Dir => mkdirat(&parent.fd, base, Mode::from_raw_mode(0o700))
                .map_err(failed(name, "create it"))?,
            FileType::Symlink => symlinkat(entry.linkname.as_slice(), &parent.fd, base)
                .map_err(failed(name, "create it"))?,
            FileType::Hardlink => {
                self.files.wait()?;
                self.link(parent, base, &entry)?;
            }
            FileType::Fifo => mknodat(&parent.fd, base, Kind::Fifo, Mode::RUSR, 0)
                .map_err(failed(name, "create it"))?,
            FileType::Char | FileType::Block => self.device(parent, base, &entry)?,
        }
        let stat = metadata::set(parent, base, &entry, &mut self.creation)
            .map_err(failed(name, "set its attributes"))?;
        if entry.file_type == FileType::Dir {
            self.walker
                .implied
                .forget(stat.st_ino, &mut self.walker.meter);
            let meter = &mut self.walker.meter;
            self.pending.directory(stat.st_ino, &entry, meter)?;
        }
        Ok(())
    }

    /// Removes what may have the name of an entry. Returns whether it is a directory that the entry,
    /// which is one itself, describes.
    fn make_way(
        &mut self,
        parent: &Parent,
        base: &[u8],
        entry: &FileMetadata,
    ) -> Result<bool, ApplyError> {
        self.files.wait()?;
        let name = entry.name.as_slice();
        let Some(stat) = look(parent.fd.as_fd(), base).map_err(failed(name, "look at it"))? else {
            return Ok(false);
        };
        if is_directory(stat) {
            if entry.file_type == FileType::Dir {
                return Ok(true);
            }
            let (implied, meter) = (&mut self.walker.implied, &mut self.walker.meter);
            self.pending
                .forget(parent, base, implied, meter)
                .map_err(failed(name, "look at it"))?;
        }
        remove(parent, base, stat).map_err(failed(name, "replace it"))?;
        self.walker.forget();
        Ok(false)
    }

    /// Creates a regular file. Its content follows.
    fn file(
        &mut self,
        parent: &Parent,
        base: &[u8],
        entry: FileMetadata,
    ) -> Result<(), ApplyError> {
        let left = entry.content_len();
        let place = if left <= SMALL {
            ContentTarget::Memory(self.files.content(left))
        } else {
            ContentTarget::File(make(parent, base, &entry, self.creation)?)
        };
        let open = OpenFile {
            place,
            parent: Arc::clone(parent),
            base: base.to_vec(),
            left,
            entry,
        };
        if left == 0 {
            return self.close(open);
        }
        self.open = Some(open);
        Ok(())
    }

    /// Sets the attributes of a file whose content is complete, or passes it on to be written.
    pub(super) fn close(&mut self, open: OpenFile) -> Result<(), ApplyError> {
        let OpenFile {
            place,
            parent,
            base,
            entry,
            ..
        } = open;
        match place {
            ContentTarget::File(file) => metadata::set_open(&file, &entry, &parent, self.creation)
                .map_err(failed(&entry.name, "set its attributes")),
            ContentTarget::Memory(content) => self.files.write(SmallFile {
                parent,
                base,
                entry,
                content,
                creation: self.creation,
            }),
        }
    }

    fn link(
        &mut self,
        parent: &Parent,
        base: &[u8],
        entry: &FileMetadata,
    ) -> Result<(), ApplyError> {
        let missing = || ApplyError::LinkTarget {
            name: printable(&entry.name),
            target: printable(&entry.linkname),
        };
        let (path, target) = soci_ztoc::tar_path::split(&entry.linkname).ok_or_else(missing)?;
        let directory = self.walker.find(path, &entry.name)?.ok_or_else(missing)?;
        match linkat(&directory.fd, target, &parent.fd, base, AtFlags::empty()) {
            Err(rustix::io::Errno::NOENT) => Err(missing()),
            linked => linked.map_err(failed(&entry.name, "link it")),
        }
    }

    fn device(&self, parent: &Parent, base: &[u8], entry: &FileMetadata) -> Result<(), ApplyError> {
        let kind = match entry.file_type {
            FileType::Block => Kind::BlockDevice,
            _ => Kind::CharacterDevice,
        };
        // Linux keeps 12 and 20 bits (MAJOR, MINOR in linux/kdev_t.h).
        let bits = |part: i64, bits: u32| u32::try_from(part).ok().filter(|part| part >> bits == 0);
        let (major, minor) = bits(entry.devmajor, 12)
            .zip(bits(entry.devminor, 20))
            .ok_or_else(|| ApplyError::BadDevice {
                name: printable(&entry.name),
                major: entry.devmajor,
                minor: entry.devminor,
            })?;
        let device = rustix::fs::makedev(major, minor);
        mknodat(&parent.fd, base, kind, Mode::RUSR, device)
            .map_err(failed(&entry.name, "create it"))
    }

    pub(super) fn mark_opaque(
        &self,
        directory: &Parent,
        entry: &FileMetadata,
    ) -> Result<(), ApplyError> {
        rustix::fs::setxattr(
            proc_path(directory.fd.as_fd(), b""),
            self.overlay_xattr.opaque(),
            b"y",
            XattrFlags::empty(),
        )
        .map_err(failed(&entry.name, "mark its directory opaque"))
    }
}

/// A file whose content is being read.
pub(super) struct OpenFile {
    place: ContentTarget,
    parent: Parent,
    base: Vec<u8>,
    entry: FileMetadata,
    /// Bytes that have not come yet.
    pub(super) left: u64,
}

/// Where the content goes.
enum ContentTarget {
    /// To the file.
    File(File),
    /// To memory: the file is made when it is complete.
    Memory(Vec<u8>),
}

impl OpenFile {
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), ApplyError> {
        match &mut self.place {
            ContentTarget::File(file) => file
                .write_all(bytes)
                .map_err(failed(&self.entry.name, "write it"))?,
            ContentTarget::Memory(content) => content.extend_from_slice(bytes),
        }
        self.left = self.left.saturating_sub(bytes.len() as u64);
        Ok(())
    }
}
