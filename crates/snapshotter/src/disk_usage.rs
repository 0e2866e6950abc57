//! Disk space of a directory tree, as containerd reports it for a snapshot: allocated bytes and
//! inodes with the root, a hard-linked file counted once.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::file_error::FileError;
use crate::metadata::Usage;

/// The unit of `st_blocks`, whatever the block size of the file system (stat(3type)).
const BLOCK: u64 = 512;

/// Measures a tree. Entries that vanish during the walk are not counted.
pub(crate) fn measure(root: &Path) -> Result<Usage, FileError> {
    let mut total = Total::default();
    let metadata = fs::symlink_metadata(root).map_err(FileError::at("stat", root))?;
    total.add(&metadata);
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        let failed = || FileError::at("read directory", &directory);
        let Some(entries) = unless_gone(fs::read_dir(&directory)).map_err(failed())? else {
            continue;
        };
        for entry in entries {
            let entry = entry.map_err(failed())?;
            let Some(metadata) = unless_gone(entry.metadata()).map_err(failed())? else {
                continue;
            };
            total.add(&metadata);
            if metadata.is_dir() {
                directories.push(entry.path());
            }
        }
    }
    Ok(total.usage())
}

#[derive(Default)]
struct Total {
    bytes: u64,
    inodes: u64,
    /// Device and inode of files with several names.
    linked: HashSet<(u64, u64)>,
}

impl Total {
    fn add(&mut self, metadata: &fs::Metadata) {
        let several = !metadata.is_dir() && metadata.nlink() > 1;
        if several && !self.linked.insert((metadata.dev(), metadata.ino())) {
            return;
        }
        let bytes = metadata.blocks().saturating_mul(BLOCK);
        self.bytes = self.bytes.saturating_add(bytes);
        self.inodes = self.inodes.saturating_add(1);
    }

    fn usage(&self) -> Usage {
        Usage {
            size: i64::try_from(self.bytes).unwrap_or(i64::MAX),
            inodes: i64::try_from(self.inodes).unwrap_or(i64::MAX),
        }
    }
}

fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hard_links_count_once_and_holes_do_not_count() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let empty = measure(root).unwrap();
        assert_eq!(empty.inodes, 1);
        fs::create_dir(root.join("sub")).unwrap();
        fs::write(root.join("sub/file"), vec![1; 64 << 10]).unwrap();
        fs::hard_link(root.join("sub/file"), root.join("link")).unwrap();
        let holes = fs::File::create(root.join("holes")).unwrap();
        holes.set_len(1 << 30).unwrap();
        // Delayed allocation: the blocks are counted once they are written.
        fs::File::open(root.join("link"))
            .unwrap()
            .sync_all()
            .unwrap();
        let full = measure(root).unwrap();
        assert_eq!(full.inodes, 4);
        assert!(full.size >= 64 << 10, "{full:?}");
        assert!(full.size < 1 << 20, "{full:?}");
    }
}
