//! Where the golden data is.

use std::path::PathBuf;

/// A file below `tests/golden`.
pub(crate) fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden")
        .join(name)
}
