//! The directories of snapshots: `snapshots/<id>/fs` holds the layer or the upper directory,
//! `snapshots/<id>/work` is the work directory of overlayfs.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, openat};

use crate::error::SnapshotterError;
use crate::file_error::FileError;
use crate::metadata::Link;
use crate::snapshot_dir::SnapshotDir;

/// Mode of the root of a snapshot, whatever the umask: containers see it as `/`.
const FS_MODE: u32 = 0o755;
/// Mode of overlayfs' work directory.
const WORK_MODE: u32 = 0o711;

/// The directory `snapshots/` and the paths in it.
#[derive(Debug, Clone)]
pub(crate) struct Directories {
    snapshots: PathBuf,
    /// The path without symbolic links, as the kernel lists mount points.
    real: PathBuf,
}

/// Owner and group of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Directories {
    /// Creates `root` and `root/snapshots` if needed, and checks that overlayfs works there.
    pub(crate) fn open(root: &Path) -> Result<Self, SnapshotterError> {
        if !root.is_absolute() || !usable_in_options(root) {
            return Err(SnapshotterError::UnusableRoot {
                path: root.to_owned(),
            });
        }
        let snapshots = root.join("snapshots");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&snapshots)
            .map_err(FileError::at("create", &snapshots))?;
        let supported = reports_types(root).map_err(FileError::at("read directory", root))?;
        if !supported {
            return Err(SnapshotterError::NoDirectoryTypes {
                path: root.to_owned(),
            });
        }
        let real = fs::canonicalize(&snapshots).map_err(FileError::at("resolve", &snapshots))?;
        Ok(Self { snapshots, real })
    }

    /// Returns `snapshots/<id>`.
    pub(crate) fn snapshot(&self, dir: impl Into<SnapshotDir>) -> PathBuf {
        self.snapshots.join(dir.into().to_string())
    }

    /// Returns `snapshots/<id>` as the kernel lists it.
    pub(crate) fn real_snapshot(&self, dir: impl Into<SnapshotDir>) -> PathBuf {
        self.real.join(dir.into().to_string())
    }

    /// Returns a path in `snapshots` as the kernel lists it.
    pub(crate) fn real_path(&self, path: &Path) -> PathBuf {
        match path.strip_prefix(&self.snapshots) {
            Ok(below) => self.real.join(below),
            Err(_) => path.to_owned(),
        }
    }

    /// Returns `snapshots` as the kernel lists it.
    pub(crate) fn real(&self) -> &Path {
        &self.real
    }

    /// Returns `snapshots/<id>/fs`.
    pub(crate) fn fs(&self, dir: impl Into<SnapshotDir>) -> PathBuf {
        self.snapshot(dir).join("fs")
    }

    /// Returns `snapshots/<id>/work`.
    pub(crate) fn work(&self, id: u64) -> PathBuf {
        self.snapshot(id).join("work")
    }

    /// Creates the directories of a new snapshot. Nothing remains of them after a failure.
    pub(crate) fn create(
        &self,
        dir: impl Into<SnapshotDir>,
        with_work: bool,
        owner: Option<Owner>,
    ) -> Result<(), FileError> {
        let dir = dir.into();
        let directory = self.snapshot(dir);
        DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .map_err(FileError::at("create", &directory))?;
        let fill = || {
            soci_faults::point("directory-made");
            make(&self.fs(dir), FS_MODE, owner)?;
            soci_faults::point("directory-fs-made");
            if with_work {
                make(&directory.join("work"), WORK_MODE, None)?;
            }
            Ok(())
        };
        fill().inspect_err(|_| {
            if let Err(error) = soci_dirtree::remove_path(&directory) {
                tracing::warn!(path = %directory.display(), %error, "cannot remove directory");
            }
        })
    }

    /// Creates `fs` as a mount point unless it exists.
    pub(crate) fn ensure_mountpoint(&self, dir: impl Into<SnapshotDir>) -> Result<(), FileError> {
        let path = self.fs(dir);
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&path)
            .map_err(FileError::at("create", &path))
    }

    /// Replaces `fs` by an empty directory. Nothing may be mounted on it.
    pub(crate) fn empty_fs(&self, id: u64, owner: Option<Owner>) -> Result<(), FileError> {
        let path = self.fs(id);
        if fs::remove_dir(&path).is_err() {
            soci_dirtree::remove_path(&path).map_err(FileError::at("empty", &path))?;
        }
        soci_faults::point("directory-fs-removed");
        make(&path, FS_MODE, owner)
    }

    /// Deletes the directories of a snapshot. Nothing may be mounted below them.
    pub(crate) fn remove(&self, dir: impl Into<SnapshotDir>) -> Result<(), FileError> {
        let directory = self.snapshot(dir);
        match soci_dirtree::remove_path(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(FileError::at("remove", &directory)(error))
            }
            _ => Ok(()),
        }
    }

    /// Lists the directories of snapshots. Other names are ignored.
    pub(crate) fn list(&self) -> Result<Vec<SnapshotDir>, FileError> {
        let failed = || FileError::at("read directory", &self.snapshots);
        let mut dirs = Vec::new();
        for entry in fs::read_dir(&self.snapshots).map_err(failed())? {
            let name = entry.map_err(failed())?.file_name();
            dirs.extend(name.to_str().and_then(SnapshotDir::parse));
        }
        Ok(dirs)
    }

    /// Lists what has a name that neither we nor v0.15 give.
    pub(crate) fn unknown(&self) -> Result<Vec<PathBuf>, FileError> {
        let failed = || FileError::at("read directory", &self.snapshots);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.snapshots).map_err(failed())? {
            let name = entry.map_err(failed())?.file_name();
            let known = name.to_str().is_some_and(|name| {
                let mut parts = name.split(['_', '-']);
                parts.all(|part| part.parse::<u64>().is_ok())
            });
            if !known {
                found.push(self.snapshots.join(&name));
            }
        }
        Ok(found)
    }

    /// Lists the directories `<id>_<new>` of v0.15, each with `new`: the layer of snapshot `id` with
    /// other owners for snapshot `new`.
    pub(crate) fn id_mapped_by_v015(&self) -> Result<Vec<(PathBuf, u64)>, FileError> {
        let failed = || FileError::at("read directory", &self.snapshots);
        let mut folders = Vec::new();
        for entry in fs::read_dir(&self.snapshots).map_err(failed())? {
            let name = entry.map_err(failed())?.file_name();
            let numbers = name.to_str().and_then(|name| name.split_once('_'));
            if let Some((lower, new)) = numbers
                && lower.parse::<u64>().is_ok()
                && let Ok(new) = new.parse()
            {
                folders.push((self.snapshots.join(&name), new));
            }
        }
        Ok(folders)
    }

    /// Returns the owner of a new snapshot on these parents: that of its parent's root.
    ///
    /// The owner of a lazy parent is recorded: stat of its root would be a request to ourselves.
    pub(crate) fn inherited_owner(&self, parents: &[Link]) -> Result<Option<Owner>, FileError> {
        let Some(parent) = parents.first() else {
            return Ok(None);
        };
        if let Some(lazy) = &parent.lazy {
            return Ok(Some(Owner {
                uid: lazy.uid,
                gid: lazy.gid,
            }));
        }
        let path = self.fs(parent.id);
        let metadata = fs::symlink_metadata(&path).map_err(FileError::at("stat", &path))?;
        Ok(Some(Owner {
            uid: metadata.uid(),
            gid: metadata.gid(),
        }))
    }
}

/// Reads the mount table.
pub(crate) fn read_mountinfo() -> Result<soci_mountinfo::Table, FileError> {
    soci_mountinfo::Table::read().map_err(FileError::at("read", soci_mountinfo::PATH.as_ref()))
}

fn make(path: &Path, mode: u32, owner: Option<Owner>) -> Result<(), FileError> {
    DirBuilder::new()
        .mode(mode)
        .create(path)
        .map_err(FileError::at("create", path))?;
    fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(FileError::at("set the mode of", path))?;
    if let Some(Owner { uid, gid }) = owner {
        lchown(path, Some(uid), Some(gid)).map_err(FileError::at("set the owner of", path))?;
    }
    Ok(())
}

/// Whether readdir reports the types of entries: overlayfs finds its whiteouts by them.
fn reports_types(directory: &Path) -> io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat(CWD, directory, flags, Mode::empty())?;
    for entry in Dir::new(directory)? {
        let entry = entry?;
        if entry.file_name() == c"snapshots" {
            return Ok(entry.file_type() != FileType::Unknown);
        }
    }
    Ok(false)
}

/// Whether a mount option can hold this path: overlayfs splits at commas and colons, and the API
/// carries UTF-8.
fn usable_in_options(path: &Path) -> bool {
    path.to_str()
        .is_some_and(|path| !path.contains([',', ':', '\\']))
}
