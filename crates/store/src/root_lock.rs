//! The lock on the daemon's root folder.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::Path;

use rustix::fs::FlockOperation;

use crate::StoreError;

const FILE_NAME: &str = "daemon.lock";

/// Holds the root folder until it is dropped, or the process dies.
#[derive(Debug)]
pub struct RootLock {
    _file: File,
}

impl RootLock {
    /// Takes the root folder, which is created (mode 0711) if need be.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another process has it, [`StoreError::NotWritable`] when we may not
    /// write there.
    pub fn acquire(root: &Path) -> Result<Self, StoreError> {
        use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
        let refused = |source: io::Error| match source.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                StoreError::NotWritable {
                    path: root.to_path_buf(),
                    source,
                }
            }
            _ => StoreError::io("lock", root, source),
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(root)
            .map_err(refused)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(root.join(FILE_NAME))
            .map_err(refused)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut text = String::new();
                // The holder may be about to write its number: then we just do not name it.
                let _ = file.take(32).read_to_string(&mut text);
                return Err(StoreError::Locked {
                    path: root.to_path_buf(),
                    pid: text.trim().parse().ok(),
                });
            }
            Err(error) => return Err(refused(error.into())),
        }
        file.set_len(0).map_err(refused)?;
        file.rewind().map_err(refused)?;
        writeln!(file, "{}", std::process::id()).map_err(refused)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_told_who_has_the_root() {
        let root = tempfile::tempdir().unwrap();
        let lock = RootLock::acquire(&root.path().join("new")).unwrap();
        let error = RootLock::acquire(&root.path().join("new")).unwrap_err();
        assert!(
            error
                .to_string()
                .contains(&format!("process {}", std::process::id())),
            "{error}"
        );
        drop(lock);
        RootLock::acquire(&root.path().join("new")).unwrap();
    }

    #[test]
    fn a_root_that_cannot_be_written_to_is_a_clear_error() {
        // /proc takes no new folders, whoever asks.
        let error = RootLock::acquire(Path::new("/proc/soci")).unwrap_err();
        assert!(error.to_string().contains("/proc/soci"), "{error}");
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = RootLock::acquire(&file.path().join("below")).unwrap_err();
        assert!(matches!(error, StoreError::Io { .. }), "{error}");
    }
}
