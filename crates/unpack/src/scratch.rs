//! The folder for layers that are being unpacked.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use crate::error::UnpackError;

/// Mode of the folder.
const MODE: u32 = 0o700;

/// Makes the folder, and removes what an earlier run left in it.
///
/// # Errors
/// It cannot be made or emptied.
pub fn prepare_folder(folder: &Path) -> Result<(), UnpackError> {
    DirBuilder::new()
        .recursive(true)
        .mode(MODE)
        .create(folder)
        .map_err(failed(folder, "make it"))?;
    fs::set_permissions(folder, Permissions::from_mode(MODE))
        .map_err(failed(folder, "set its mode"))?;
    empty_folder(folder)
}

/// Removes all that is in a folder.
///
/// # Errors
/// Something cannot be removed.
pub fn empty_folder(folder: &Path) -> Result<(), UnpackError> {
    let entries = fs::read_dir(folder).map_err(failed(folder, "read it"))?;
    for entry in entries {
        let entry = entry.map_err(failed(folder, "read it"))?;
        soci_dirtree::remove_path(&entry.path()).map_err(failed(folder, "empty it"))?;
    }
    Ok(())
}

fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> UnpackError {
    let path = path.to_owned();
    move |source| UnpackError::Scratch {
        path,
        action,
        source,
    }
}
