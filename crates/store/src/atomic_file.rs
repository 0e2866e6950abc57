//! Files that are there whole or not at all: written under another name in the same folder, made
//! durable, then renamed.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::StoreError;
use crate::disk_fault::fault;

/// What the names of unfinished files start with.
pub(crate) const UNFINISHED: &str = ".unfinished-";

/// A file under its temporary name; removed when dropped before [`AtomicFile::finish`].
#[derive(Debug)]
pub(crate) struct AtomicFile {
    file: File,
    path: PathBuf,
    finished: bool,
}

impl AtomicFile {
    /// Starts a file in `folder`.
    pub(crate) fn create(folder: &Path) -> Result<Self, StoreError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!("{UNFINISHED}{}-{count}", std::process::id()));
        let file = fault("store-create-file")
            .and_then(|()| {
                OpenOptions::new()
                    .read(true)
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .open(&path)
            })
            .map_err(|e| StoreError::io("create", &path, e))?;
        Ok(Self {
            file,
            path,
            finished: false,
        })
    }

    pub(crate) fn write(&mut self, data: &[u8]) -> Result<(), StoreError> {
        fault("store-write-file")
            .and_then(|()| self.file.write_all(data))
            .map_err(|e| StoreError::io("write", &self.path, e))
    }

    /// Makes the content durable and gives it its name, replacing what had it.
    pub(crate) fn finish(mut self, to: &Path) -> Result<(), StoreError> {
        fault("store-sync-file")
            .and_then(|()| self.file.sync_all())
            .map_err(|e| StoreError::io("write", &self.path, e))?;
        fault("store-rename-file")
            .and_then(|()| fs::rename(&self.path, to))
            .map_err(|e| StoreError::io("create", to, e))?;
        self.finished = true;
        sync_folder(to.parent().unwrap_or(Path::new(".")))
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.finished {
            // If it cannot be removed now, it will be when the store is opened next.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Writes a small file durably: after a power cut it is complete, or as before.
///
/// # Errors
/// It cannot be written. The file is as before then.
pub fn write_file(path: &Path, data: &[u8]) -> Result<(), StoreError> {
    let mut file = AtomicFile::create(path.parent().unwrap_or(Path::new(".")))?;
    file.write(data)?;
    file.finish(path)
}

/// Makes names in a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    fault("store-sync-folder")
        .and_then(|()| File::open(folder)?.sync_all())
        .map_err(|e| StoreError::io("sync", folder, e))
}
