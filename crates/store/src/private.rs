//! Files and folders that only root may read, also those that an earlier version made readable.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Mode of a folder.
pub(crate) const FOLDER: u32 = 0o700;
/// Mode of a file.
pub(crate) const FILE: u32 = 0o600;

/// Takes the permissions that are not in `mode` from a path. That it is another user's is not an error:
/// that user decides.
pub(crate) fn restrict(path: &Path, mode: u32) -> io::Result<()> {
    let present = fs::metadata(path)?.permissions().mode() & 0o7777;
    if present & !mode == 0 {
        return Ok(());
    }
    match fs::set_permissions(path, Permissions::from_mode(present & mode)) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        set => set,
    }
}
