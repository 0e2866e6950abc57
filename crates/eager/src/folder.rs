//! The folders in the scratch directory that layers are unpacked into before their Prepare.

use std::fs::{self, DirBuilder, File, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use crate::error::{EagerError, folder};

/// Permission bits of a mode.
const PERMISSIONS: u32 = 0o7777;

/// A folder of its own in the scratch directory, with an empty `fs` in it. It is deleted when this is
/// dropped.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Makes a folder. Blocks.
    pub(crate) fn new(scratch: &Path) -> Result<Self, EagerError> {
        let made = tempfile::Builder::new()
            .prefix("layer-")
            .tempdir_in(scratch)
            .map_err(folder(scratch, "make a folder in it"))?;
        let made = Self { path: made.keep() };
        let fs = made.fs();
        DirBuilder::new()
            .mode(0o755)
            .create(&fs)
            .map_err(folder(&fs, "make it"))?;
        soci_faults::point("eager-folder-made");
        Ok(made)
    }

    /// The directory that the layer is unpacked into.
    pub(crate) fn fs(&self) -> PathBuf {
        self.path.join("fs")
    }

    /// Moves the layer to `target`, an empty directory whose owner and mode it gets. Blocks.
    pub(crate) fn move_to(self, target: &Path) -> Result<(), EagerError> {
        let fs = self.fs();
        let of_target = fs::symlink_metadata(target).map_err(folder(target, "look at it"))?;
        lchown(&fs, Some(of_target.uid()), Some(of_target.gid()))
            .map_err(folder(&fs, "set its owner"))?;
        let mode = Permissions::from_mode(of_target.mode() & PERMISSIONS);
        fs::set_permissions(&fs, mode).map_err(folder(&fs, "set its mode"))?;
        soci_faults::point("eager-layer-complete");
        // Replaces an empty directory only, which is what no half-written layer can be hidden by.
        fs::rename(&fs, target).map_err(folder(
            target,
            "move the unpacked layer to it (unpack/ and snapshotter/ must be on one file system)",
        ))?;
        soci_faults::point("eager-layer-moved");
        let above = target.parent().unwrap_or(target);
        let synced = File::open(above).and_then(|above| above.sync_all());
        synced.map_err(folder(above, "write it to disk"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let path = std::mem::take(&mut self.path);
        let remove = move || {
            if let Err(error) = soci_dirtree::remove_path(&path)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "cannot remove a folder of an unpacked layer");
            }
        };
        match tokio::runtime::Handle::try_current() {
            // A layer may have many files, and this may be a thread of the runtime.
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_gets_the_owner_and_mode_of_the_directory_that_it_replaces() {
        let root = tempfile::tempdir().unwrap();
        let scratch = root.path().join("unpack");
        let target = root.path().join("fs");
        for path in [&scratch, &target] {
            fs::create_dir(path).unwrap();
        }
        lchown(&target, Some(7), Some(8)).unwrap();
        fs::set_permissions(&target, Permissions::from_mode(0o751)).unwrap();
        let folder = Folder::new(&scratch).unwrap();
        fs::write(folder.fs().join("file"), "content").unwrap();
        folder.move_to(&target).unwrap();
        let moved = fs::metadata(&target).unwrap();
        assert_eq!(
            (moved.uid(), moved.gid(), moved.mode() & PERMISSIONS),
            (7, 8, 0o751)
        );
        assert_eq!(fs::read(target.join("file")).unwrap(), b"content");
        assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0);
    }

    #[test]
    fn a_layer_never_replaces_a_directory_with_content() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("fs");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("half"), "written").unwrap();
        let folder = Folder::new(root.path()).unwrap();
        let error = folder.move_to(&target).unwrap_err();
        assert!(matches!(error, EagerError::Folder { .. }), "{error}");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }
}
