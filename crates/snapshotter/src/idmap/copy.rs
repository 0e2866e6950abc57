//! A copy of an unpacked layer with translated owners, for a container in a user namespace whose
//! other layers are lazy.

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Stat, linkat, mkdirat, mknodat, openat, readlinkat, renameat,
    statat, symlinkat,
};
use rustix::io::Errno;

use super::attributes::{self, At};
use crate::file_error::FileError;
use soci_dirtree::{Descent, Event, Walk};
use soci_layer::IdMaps;

/// Copies the tree below `from`, and the attributes of `from` itself, to the empty directory `to`.
/// Whiteouts and the marks of opaque directories are copied as they are. Blocking.
///
/// During that, a folder beside `to` has a name of each file with several names, by device and inode.
pub(crate) fn copy(from: &Path, to: &Path, maps: &IdMaps) -> Result<(), FileError> {
    let linked = to.with_extension("linked");
    fs::create_dir(&linked).map_err(FileError::at("create", &linked))?;
    let copied = copy_tree(from, to, &linked, maps).map_err(FileError::at("copy", from));
    let removed = soci_dirtree::remove_path(&linked).map_err(FileError::at("remove", &linked));
    copied.and(removed)
}

fn copy_tree(from: &Path, to: &Path, linked: &Path, maps: &IdMaps) -> io::Result<()> {
    let linked = File::open(linked)?;
    let mut copy = Copy {
        source: Walk::still(from)?,
        target: Descent::open(to)?,
        linked: linked.as_fd(),
        maps,
    };
    copy.all().map_err(|error| {
        let name = copy.source.name().to_string_lossy();
        io::Error::new(error.kind(), format!("{name:?} in it: {error}"))
    })
}

struct Copy<'a> {
    source: Walk,
    /// The copy of the source's current directory.
    target: Descent,
    linked: BorrowedFd<'a>,
    maps: &'a IdMaps,
}

impl Copy<'_> {
    fn all(&mut self) -> io::Result<()> {
        while let Some(event) = self.source.step()? {
            match event {
                Event::Entry(FileType::Directory) => {
                    mkdirat(self.target.directory(), self.source.name(), Mode::RWXU)?;
                }
                Event::Entry(_) => self.file()?,
                Event::Entered => self.target.enter(self.source.name())?,
                Event::Leaving => {
                    // Last, because making entries changes the times of their directory.
                    let stat = rustix::fs::fstat(self.source.directory())?;
                    let [from, to] =
                        [self.source.directory(), self.target.directory()].map(|directory| At {
                            directory,
                            name: c".",
                        });
                    attributes::copy(from, to, &stat, self.maps)?;
                    self.target.leave()?;
                }
            }
        }
        Ok(())
    }

    fn file(&self) -> io::Result<()> {
        let (source, target) = (self.source.directory(), self.target.directory());
        let name = self.source.name();
        let stat = statat(source, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let several = stat.st_nlink > 1;
        let linked = CString::new(format!("{}-{}", stat.st_dev, stat.st_ino))?;
        if several {
            match linkat(self.linked, &*linked, target, name, AtFlags::empty()) {
                Err(Errno::NOENT) => {}
                // The name that we added is one too many for the last one.
                Err(Errno::MLINK) => return Ok(renameat(self.linked, &*linked, target, name)?),
                done => return Ok(done?),
            }
        }
        if !make(source, target, name, &stat)? {
            return Ok(());
        }
        let [from, to] = [source, target].map(|directory| At { directory, name });
        attributes::copy(from, to, &stat, self.maps)?;
        if several {
            linkat(target, name, self.linked, &*linked, AtFlags::empty())?;
        }
        Ok(())
    }
}

/// Makes a file of the same kind and content; `false` if it is of no use in a copy.
fn make(
    source: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    name: &CStr,
    stat: &Stat,
) -> io::Result<bool> {
    let kind = FileType::from_raw_mode(stat.st_mode);
    match kind {
        FileType::RegularFile => {
            let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let create =
                OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut from = File::from(openat(source, name, read, Mode::empty())?);
            let mut to = File::from(openat(target, name, create, Mode::RUSR | Mode::WUSR)?);
            // Shares the blocks where the file system can.
            io::copy(&mut from, &mut to)?;
        }
        FileType::Symlink => symlinkat(&*readlinkat(source, name, Vec::new())?, target, name)?,
        FileType::Fifo | FileType::CharacterDevice | FileType::BlockDevice => {
            mknodat(target, name, kind, Mode::RUSR, stat.st_rdev)?;
        }
        // A socket without its server is useless, and no layer has any.
        _ => return Ok(false),
    }
    Ok(true)
}
