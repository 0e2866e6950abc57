//! A copy of an unpacked layer with translated owners, for a container in a user namespace whose
//! other layers are lazy.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::attributes;
use crate::file_error::FileError;
use soci_layer::IdMaps;

/// Copies the tree below `from`, and the attributes of `from` itself, to the empty directory `to`.
/// Whiteouts and the marks of opaque directories are copied as they are. Blocking.
pub(crate) fn copy(from: &Path, to: &Path, maps: &IdMaps) -> Result<(), FileError> {
    let mut copy = Copy {
        maps,
        linked: HashMap::new(),
    };
    copy.directory(from, to)
}

struct Copy<'a> {
    maps: &'a IdMaps,
    /// The first copies of files with several names, by device and inode.
    linked: HashMap<(u64, u64), PathBuf>,
}

impl Copy<'_> {
    fn directory(&mut self, from: &Path, to: &Path) -> Result<(), FileError> {
        // Not recursive: the tree can be deeper than the stack allows.
        let mut left = vec![(from.to_owned(), to.to_owned())];
        let mut done = Vec::new();
        while let Some((from, to)) = left.pop() {
            let entries = fs::read_dir(&from).map_err(FileError::at("read", &from))?;
            for entry in entries {
                let entry = entry.map_err(FileError::at("read", &from))?;
                let (source, target) = (entry.path(), to.join(entry.file_name()));
                let failed = || FileError::at("copy", &source);
                let stat = fs::symlink_metadata(&source).map_err(failed())?;
                if stat.is_dir() {
                    fs::create_dir(&target).map_err(failed())?;
                    left.push((source, target));
                } else {
                    self.file(&source, &target, &stat).map_err(failed())?;
                }
            }
            done.push((from, to));
        }
        // Last, because making entries changes the times of their directory.
        for (from, to) in done.iter().rev() {
            let failed = || FileError::at("copy", from);
            let stat = fs::symlink_metadata(from).map_err(failed())?;
            attributes::copy(from, to, &stat, self.maps).map_err(failed())?;
        }
        Ok(())
    }

    fn file(&mut self, from: &Path, to: &Path, stat: &fs::Metadata) -> io::Result<()> {
        if stat.nlink() > 1 {
            let key = (stat.dev(), stat.ino());
            if let Some(first) = self.linked.get(&key) {
                return fs::hard_link(first, to);
            }
            self.linked.insert(key, to.to_owned());
        }
        let kind = stat.file_type();
        if kind.is_file() {
            let mut source = File::open(from)?;
            let mut target = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(to)?;
            // Shares the blocks where the file system can.
            io::copy(&mut source, &mut target)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(from)?, to)?;
        } else if kind.is_fifo() || kind.is_char_device() || kind.is_block_device() {
            let kind = FileType::from_raw_mode(stat.mode());
            mknodat(CWD, to, kind, Mode::RUSR, stat.rdev())?;
        } else {
            // A socket without its server is useless, and no layer has any.
            return Ok(());
        }
        attributes::copy(from, to, stat, self.maps)
    }
}
