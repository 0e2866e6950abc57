//! The names that snapshots can have.

use crate::error::SnapshotterError;

/// Maximum length in bytes, as in containerd's database.
const MAX_LENGTH: usize = 32 << 10;

/// Refuses empty and overlong names. Others are valid: names are not paths.
pub(crate) fn check(name: &str) -> Result<(), SnapshotterError> {
    let reason = match name.len() {
        0 => "the name is empty",
        1..=MAX_LENGTH => return Ok(()),
        _ => "the name is longer than 32 KiB",
    };
    Err(SnapshotterError::InvalidName { reason })
}
