//! The lock on the daemon's root folder.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

use rustix::fs::FlockOperation;

use crate::StoreError;

const FILE_NAME: &str = "daemon.lock";

/// How often the table of locks is read before the folder counts as unlocked. The kernel shows it in parts of
/// a page, and a lock that goes between two of them hides another one.
const LOOKS: usize = 3;
/// Bytes of the file: always the same, so that it can be written again on a full disk.
const LENGTH: usize = 64;

/// The processes that have a root folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The process that an operator or the service manager knows, and talks to by signals; `None` if it
    /// is gone and only its server continues.
    pub supervisor: Option<u32>,
    /// The process that serves, and has the lock.
    pub server: u32,
}

impl Owner {
    /// Reads what [`RootLock::set_owner`] wrote, or an earlier version: the number of one process.
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split_whitespace().map(str::parse::<u32>);
        let first = numbers.next()?.ok()?;
        let server = numbers.next().and_then(Result::ok);
        Some(Self {
            supervisor: Some(first).filter(|pid| *pid != 0),
            server: server.unwrap_or(first),
        })
    }
}

/// Holds the root folder until it is dropped, or the process dies.
#[derive(Debug)]
pub struct RootLock {
    file: File,
}

impl RootLock {
    /// Acquires the lock of the root folder, which is created (mode 0711) if need be.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another process has it, [`StoreError::NotWritable`] when we may not
    /// write there.
    pub fn acquire(root: &Path, owner: Owner) -> Result<Self, StoreError> {
        use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
        let refused = |source: io::Error| match source.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                StoreError::NotWritable {
                    path: root.to_path_buf(),
                    source,
                }
            }
            _ => StoreError::io("lock", root, source),
        };
        if !root.exists() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o711)
                .create(root)
                .map_err(refused)?;
            // Whatever the umask: containers in user namespaces have to get through.
            fs::set_permissions(root, fs::Permissions::from_mode(0o711)).map_err(refused)?;
        }
        let file = OpenOptions::new()
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
                return Err(StoreError::Locked {
                    path: root.to_path_buf(),
                    owner: owner_in(&file),
                });
            }
            Err(error) => return Err(refused(error.into())),
        }
        let lock = Self { file };
        lock.set_owner(owner);
        Ok(lock)
    }

    /// Records the owner. Best effort: on a full disk it is missing, and the lock holds.
    pub fn set_owner(&self, owner: Owner) {
        let supervisor = owner.supervisor.unwrap_or(0);
        let text = format!("{supervisor} {}", owner.server);
        let line = format!("{text:<width$}\n", width = LENGTH - 1);
        if let Err(error) = self.file.write_all_at(line.as_bytes(), 0) {
            tracing::warn!(error = %error, "cannot record which process holds the root folder");
        }
    }

    /// Returns the owner of the root directory, if there is one.
    ///
    /// # Errors
    /// If the lock's file cannot be read.
    pub fn owner(root: &Path) -> Result<Option<Owner>, StoreError> {
        let failed = |source| StoreError::io("look at the lock of", root, source);
        let file = match File::open(root.join(FILE_NAME)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let inode = file.metadata().map_err(failed)?.ino();
        for _ in 0..LOOKS {
            // Not by trying to lock it, which could be in the way of a daemon that starts just then.
            let locks = fs::read_to_string("/proc/locks").map_err(failed)?;
            let owner = owner_in(&file).filter(|owner| is_locked(&locks, inode, owner.server));
            if owner.is_some() {
                return Ok(owner);
            }
        }
        Ok(None)
    }
}

impl Drop for RootLock {
    fn drop(&mut self) {
        // Closing is not enough (flock(2)): a child of another thread has the file open until its exec.
        let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
    }
}

/// Whether a process has locked a file, by what /proc/locks says (proc_locks(5)), for instance
/// `1: FLOCK  ADVISORY  WRITE 42 fe:00:131 0 EOF`.
fn is_locked(locks: &str, inode: u64, pid: u32) -> bool {
    let (inode, pid) = (format!(":{inode}"), pid.to_string());
    locks.lines().any(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        fields.get(1) == Some(&"FLOCK")
            && fields.get(4) == Some(&pid.as_str())
            && fields.get(5).is_some_and(|file| file.ends_with(&inode))
    })
}

fn owner_in(file: &File) -> Option<Owner> {
    let mut text = [0; LENGTH];
    // The holder may be about to write its number: then we just do not name it.
    let length = file.read_at(&mut text, 0).ok()?;
    Owner::parse(std::str::from_utf8(text.get(..length)?).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A daemon without a process of its own to supervise it.
    fn us() -> Owner {
        Owner {
            supervisor: Some(std::process::id()),
            server: std::process::id(),
        }
    }

    /// As a child has it between fork and exec.
    #[test]
    fn the_lock_ends_with_its_owner_though_a_child_has_the_file_open() {
        let root = tempfile::tempdir().unwrap();
        let lock = RootLock::acquire(root.path(), us()).unwrap();
        let _copy = lock.file.try_clone().unwrap();
        drop(lock);
        RootLock::acquire(root.path(), us()).unwrap();
    }

    #[test]
    fn the_process_that_holds_the_root_can_be_read_and_may_change() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(RootLock::owner(root.path()).unwrap(), None);
        let server = std::process::id();
        let owner = Owner {
            supervisor: Some(1_234_567),
            server,
        };
        let lock = RootLock::acquire(root.path(), owner).unwrap();
        assert_eq!(RootLock::owner(root.path()).unwrap(), Some(owner));
        let orphan = Owner {
            supervisor: None,
            server,
        };
        lock.set_owner(orphan);
        assert_eq!(RootLock::owner(root.path()).unwrap(), Some(orphan));
        drop(lock);
        assert_eq!(RootLock::owner(root.path()).unwrap(), None);
        // As version 1.0.0 wrote it.
        let old = Owner::parse("42\n").unwrap();
        assert_eq!((old.supervisor, old.server), (Some(42), 42));
    }

    #[test]
    fn a_second_daemon_is_refused_with_the_process_that_holds_the_root() {
        let root = tempfile::tempdir().unwrap();
        let lock = RootLock::acquire(&root.path().join("new"), us()).unwrap();
        let error = RootLock::acquire(&root.path().join("new"), us()).unwrap_err();
        assert!(
            error
                .to_string()
                .contains(&format!("process {}", std::process::id())),
            "{error}"
        );
        drop(lock);
        RootLock::acquire(&root.path().join("new"), us()).unwrap();
    }

    #[test]
    fn a_root_that_cannot_be_written_to_is_a_clear_error() {
        // /proc takes no new directories, not even from root.
        let error = RootLock::acquire(Path::new("/proc/soci"), us()).unwrap_err();
        assert!(error.to_string().contains("/proc/soci"), "{error}");
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = RootLock::acquire(&file.path().join("below"), us()).unwrap_err();
        assert!(matches!(error, StoreError::Io { .. }), "{error}");
    }
}
