//! Creation of the file that an entry describes.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;

use rustix::fs::{
    AtFlags, FileType as Kind, Mode, OFlags, XattrFlags, linkat, mkdirat, mknodat, openat,
    symlinkat,
};
use soci_ztoc::{FileMetadata, FileType};

use super::directory::{Parent, is_directory, look, proc_path, remove};
use super::{Applier, OpenFile, metadata};
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
        let name = entry.name.as_slice();
        let existing = look(parent.fd.as_fd(), base).map_err(failed(name, "look at it"))?;
        let merge = entry.file_type == FileType::Dir && existing.is_some_and(is_directory);
        if let Some(stat) = existing.filter(|_| !merge) {
            if is_directory(stat) {
                self.pending
                    .forget(parent, base, &mut self.walker.meter)
                    .map_err(failed(name, "look at it"))?;
            }
            remove(parent, base, stat).map_err(failed(name, "replace it"))?;
            self.walker.forget();
        }
        match entry.file_type {
            FileType::Reg => {
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let file = openat(&parent.fd, base, flags, Mode::from_raw_mode(0o600))
                    .map_err(failed(name, "create it"))?;
                let open = OpenFile {
                    file: File::from(file),
                    left: entry.content_len(),
                    entry,
                };
                if open.left == 0 {
                    return self.close(&open);
                }
                self.open = Some(open);
                return Ok(());
            }
            FileType::Dir if merge => {}
            FileType::Dir => mkdirat(&parent.fd, base, Mode::from_raw_mode(0o700))
                .map_err(failed(name, "create it"))?,
            FileType::Symlink => symlinkat(entry.linkname.as_slice(), &parent.fd, base)
                .map_err(failed(name, "create it"))?,
            FileType::Hardlink => self.link(parent, base, &entry)?,
            FileType::Fifo => mknodat(&parent.fd, base, Kind::Fifo, Mode::RUSR, 0)
                .map_err(failed(name, "create it"))?,
            FileType::Char | FileType::Block => self.device(parent, base, &entry)?,
        }
        metadata::set(parent, base, &entry, self.overlay_xattr)
            .map_err(failed(name, "set its attributes"))?;
        if entry.file_type == FileType::Dir {
            let stat = look(parent.fd.as_fd(), base).map_err(failed(name, "look at it"))?;
            if let Some(stat) = stat {
                let meter = &mut self.walker.meter;
                self.pending.directory(stat.st_ino, &entry, meter)?;
            }
        }
        Ok(())
    }

    /// Sets the attributes of a file whose content is complete.
    pub(super) fn close(&mut self, open: &OpenFile) -> Result<(), ApplyError> {
        metadata::set_open(&open.file, &open.entry, self.overlay_xattr)
            .map_err(failed(&open.entry.name, "set its attributes"))
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

impl OpenFile {
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), ApplyError> {
        self.file
            .write_all(bytes)
            .map_err(failed(&self.entry.name, "write it"))?;
        self.left = self.left.saturating_sub(bytes.len() as u64);
        Ok(())
    }
}
