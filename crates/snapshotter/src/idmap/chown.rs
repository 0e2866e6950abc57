//! Translation of the owners of a whole root file system, in the upper directory of a container
//! without lazy layers.

use std::ffi::CStr;
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, statat};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::attributes::{self, At};
use crate::file_error::FileError;
use soci_dirtree::{Event, Walk};
use soci_layer::IdMaps;

/// Maximum length of mount options in bytes: mount(2) accepts one page.
const MAX_OPTIONS: usize = 4000;

/// Limit of folders within each other. Time for copying one up grows with its depth, in the kernel;
/// image layers have at most 2,048, committed containers any number.
const MAX_DEPTH: usize = 10_000;

/// An overlay to mount.
pub(crate) struct Overlay {
    /// Lower directories, nearest first.
    pub(crate) lower: Vec<PathBuf>,
    pub(crate) upper: PathBuf,
    pub(crate) work: PathBuf,
    /// Further options, such as `userxattr`.
    pub(crate) extra: Vec<String>,
    /// Where it is mounted for the work; created before and removed after it.
    pub(crate) mountpoint: PathBuf,
}

/// Mounts the overlay, translates the owner of everything in it, and unmounts it. Blocking.
pub(crate) fn chown(overlay: &Overlay, maps: &IdMaps) -> Result<(), FileError> {
    let mountpoint = &overlay.mountpoint;
    DirBuilder::new()
        .mode(0o700)
        .create(mountpoint)
        .map_err(FileError::at("create", mountpoint))?;
    let changed = overlay.mounted(|| chown_tree(mountpoint, maps));
    let removed = fs::remove_dir(mountpoint).map_err(FileError::at("remove", mountpoint));
    changed.and(removed)
}

impl Overlay {
    fn mounted(&self, work: impl FnOnce() -> Result<(), FileError>) -> Result<(), FileError> {
        let failed = |error: rustix::io::Errno| {
            FileError::at("mount an overlay on", &self.mountpoint)(error.into())
        };
        // Kept open until it is mounted.
        let mut open = Vec::new();
        let mut lower: Vec<String> = self.lower.iter().map(|p| p.display().to_string()).collect();
        if lower.iter().map(|path| path.len() + 1).sum::<usize>() > MAX_OPTIONS / 2 {
            for (path, short) in self.lower.iter().zip(&mut lower) {
                let directory = File::open(path).map_err(FileError::at("open", path))?;
                *short = format!("/proc/self/fd/{}", directory.as_raw_fd());
                open.push(directory);
            }
        }
        let mut options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.join(":"),
            self.upper.display(),
            self.work.display()
        );
        for extra in &self.extra {
            options.push(',');
            options.push_str(extra);
        }
        let options = std::ffi::CString::new(options)
            .map_err(|error| FileError::at("mount", &self.mountpoint)(error.into()))?;
        mount(
            "overlay",
            &self.mountpoint,
            "overlay",
            MountFlags::empty(),
            Some(options.as_c_str()),
        )
        .map_err(failed)?;
        drop(open);
        let done = work();
        let unmounted = unmount(&self.mountpoint, UnmountFlags::empty())
            .or_else(|_| unmount(&self.mountpoint, UnmountFlags::DETACH))
            .map_err(|error| FileError::at("unmount", &self.mountpoint)(error.into()));
        done.and(unmounted)
    }
}

/// Translates the owner of each name exactly once: overlayfs copies up each name of a file as a file
/// of its own.
fn chown_tree(root: &Path, maps: &IdMaps) -> Result<(), FileError> {
    let failed = |error| FileError::at("set the owners below", root)(error);
    // Directories are listed before anything in them is changed: copying up changes them.
    let mut walk = Walk::listed(root).map_err(failed)?;
    change(&walk, c".", maps).map_err(failed)?;
    while let Some(event) = walk.step().map_err(failed)? {
        if !matches!(event, Event::Entry(_)) {
            continue;
        }
        if walk.depth() > MAX_DEPTH {
            let reason = format!("its folders are more than {MAX_DEPTH} levels deep");
            return Err(failed(io::Error::new(ErrorKind::QuotaExceeded, reason)));
        }
        match change(&walk, walk.name(), maps) {
            // A whiteout that overlayfs lists without showing it.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            changed => changed.map_err(|error| {
                let name = walk.name().to_string_lossy();
                failed(io::Error::new(error.kind(), format!("{name:?}: {error}")))
            })?,
        }
    }
    Ok(())
}

fn change(walk: &Walk, name: &CStr, maps: &IdMaps) -> io::Result<()> {
    let directory = walk.directory();
    let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
    attributes::change_owner(At { directory, name }, &stat, maps)
}
