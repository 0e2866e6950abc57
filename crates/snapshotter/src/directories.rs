//! The directories of snapshots: `snapshots/<id>/fs` is the layer or the upper directory,
//! `snapshots/<id>/work` overlayfs' scratch space.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, openat};

use crate::error::SnapshotterError;
use crate::metadata::Link;
use crate::place::Place;

/// Mode of the root of a snapshot, whatever the umask: containers see it as `/`.
const FS_MODE: u32 = 0o755;
/// Mode of overlayfs' work directory.
const WORK_MODE: u32 = 0o711;

/// Where the directories are.
#[derive(Debug, Clone)]
pub(crate) struct Directories {
    snapshots: PathBuf,
    /// The same without symbolic links, as the kernel lists mount points.
    real: PathBuf,
}

/// Owner and group of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Directories {
    /// Makes `root` and `root/snapshots` if needed, and checks that overlayfs can work there.
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
            .map_err(SnapshotterError::io("create", &snapshots))?;
        let supported =
            reports_types(root).map_err(SnapshotterError::io("read directory", root))?;
        if !supported {
            return Err(SnapshotterError::NoDirectoryTypes {
                path: root.to_owned(),
            });
        }
        let real =
            fs::canonicalize(&snapshots).map_err(SnapshotterError::io("resolve", &snapshots))?;
        Ok(Self { snapshots, real })
    }

    /// `snapshots/<id>`.
    pub(crate) fn snapshot(&self, place: impl Into<Place>) -> PathBuf {
        self.snapshots.join(place.into().to_string())
    }

    /// `snapshots/<id>` as the kernel lists it.
    pub(crate) fn real_snapshot(&self, place: impl Into<Place>) -> PathBuf {
        self.real.join(place.into().to_string())
    }

    /// A path of ours in `snapshots` as the kernel lists it.
    pub(crate) fn real_path(&self, path: &Path) -> PathBuf {
        match path.strip_prefix(&self.snapshots) {
            Ok(below) => self.real.join(below),
            Err(_) => path.to_owned(),
        }
    }

    /// `snapshots` as the kernel lists it.
    pub(crate) fn real(&self) -> &Path {
        &self.real
    }

    /// `snapshots/<id>/fs`.
    pub(crate) fn fs(&self, place: impl Into<Place>) -> PathBuf {
        self.snapshot(place).join("fs")
    }

    /// `snapshots/<id>/work`.
    pub(crate) fn work(&self, id: u64) -> PathBuf {
        self.snapshot(id).join("work")
    }

    /// Makes the directories of a new snapshot; nothing remains of them after a failure.
    pub(crate) fn create(
        &self,
        place: impl Into<Place>,
        with_work: bool,
        owner: Option<Owner>,
    ) -> Result<(), SnapshotterError> {
        let place = place.into();
        let directory = self.snapshot(place);
        DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .map_err(SnapshotterError::io("create", &directory))?;
        let fill = || {
            soci_faults::point("directory-made");
            make(&self.fs(place), FS_MODE, owner)?;
            soci_faults::point("directory-fs-made");
            if with_work {
                make(&directory.join("work"), WORK_MODE, None)?;
            }
            Ok(())
        };
        fill().inspect_err(|_| {
            if let Err(error) = fs::remove_dir_all(&directory) {
                tracing::warn!(path = %directory.display(), %error, "cannot remove directory");
            }
        })
    }

    /// Makes sure that `fs` is there to mount on.
    pub(crate) fn ensure_mountpoint(
        &self,
        place: impl Into<Place>,
    ) -> Result<(), SnapshotterError> {
        let path = self.fs(place);
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&path)
            .map_err(SnapshotterError::io("create", &path))
    }

    /// Makes `fs` anew if anything is left in it. Nothing may be mounted on it.
    pub(crate) fn empty_fs(&self, id: u64, owner: Option<Owner>) -> Result<(), SnapshotterError> {
        let path = self.fs(id);
        if fs::remove_dir(&path).is_err() {
            fs::remove_dir_all(&path).map_err(SnapshotterError::io("empty", &path))?;
        }
        soci_faults::point("directory-fs-removed");
        make(&path, FS_MODE, owner)
    }

    /// Deletes the directories of a snapshot. Nothing may be mounted below them.
    pub(crate) fn remove(&self, place: impl Into<Place>) -> Result<(), SnapshotterError> {
        let directory = self.snapshot(place);
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(SnapshotterError::io("remove", &directory)(error))
            }
            _ => Ok(()),
        }
    }

    /// The places that have a directory; other names are nobody's business.
    pub(crate) fn places(&self) -> Result<Vec<Place>, SnapshotterError> {
        let failed = || SnapshotterError::io("read directory", &self.snapshots);
        let mut places = Vec::new();
        for entry in fs::read_dir(&self.snapshots).map_err(failed())? {
            let name = entry.map_err(failed())?.file_name();
            places.extend(name.to_str().and_then(Place::parse));
        }
        Ok(places)
    }

    /// The folders `<id>_<new>`: a lower layer `id` as the snapshot `new` sees it, with other ids, made
    /// by v0.15. Gives each path with `new`.
    pub(crate) fn id_mapped(&self) -> Result<Vec<(PathBuf, u64)>, SnapshotterError> {
        let failed = || SnapshotterError::io("read directory", &self.snapshots);
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

    /// The owner that a snapshot on these parents gets: that of its parent's root. A lazy parent
    /// is not asked, since that would be a request to ourselves; its owner is on record.
    pub(crate) fn inherited_owner(
        &self,
        parents: &[Link],
    ) -> Result<Option<Owner>, SnapshotterError> {
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
        let metadata = fs::symlink_metadata(&path).map_err(SnapshotterError::io("stat", &path))?;
        Ok(Some(Owner {
            uid: metadata.uid(),
            gid: metadata.gid(),
        }))
    }
}

fn make(path: &Path, mode: u32, owner: Option<Owner>) -> Result<(), SnapshotterError> {
    DirBuilder::new()
        .mode(mode)
        .create(path)
        .map_err(SnapshotterError::io("create", path))?;
    fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(SnapshotterError::io("set the mode of", path))?;
    if let Some(Owner { uid, gid }) = owner {
        lchown(path, Some(uid), Some(gid))
            .map_err(SnapshotterError::io("set the owner of", path))?;
    }
    Ok(())
}

/// Whether readdir tells the types of entries; overlayfs finds its whiteouts by them.
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

/// Whether the text of a mount option can hold this path: overlayfs splits at commas and
/// colons, and the API carries UTF-8.
fn usable_in_options(path: &Path) -> bool {
    path.to_str()
        .is_some_and(|path| !path.contains([',', ':', '\\']))
}
