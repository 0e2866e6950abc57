//! Disk space of a directory tree, as containerd reports it for a snapshot. A container
//! may change the tree during the walk.

use std::path::Path;

use crate::file_error::FileError;
use crate::metadata::Usage;

/// Measures a tree. Entries that vanish during the walk are not counted.
pub(crate) fn measure(root: &Path) -> Result<Usage, FileError> {
    let soci_dirtree::Usage { bytes, inodes } =
        soci_dirtree::measure(root).map_err(FileError::at("measure", root))?;
    Ok(of(bytes, inodes))
}

/// Converts the size of a tree that was measured.
pub(crate) fn of(bytes: u64, inodes: u64) -> Usage {
    Usage {
        size: i64::try_from(bytes).unwrap_or(i64::MAX),
        inodes: i64::try_from(inodes).unwrap_or(i64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

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
