//! containerd's configuration files: which of them to change, and how.
//!
//! Versions 2 and 3 of the format are read. containerd before 2.0 replaces the whole section of a plugin by
//! that of an imported file; since 2.0 it merges them key by key, and replaces only arrays. A drop-in can
//! therefore change single keys under containerd 2.x only.

mod edit;
mod files;
mod release;

pub use edit::{Before, Edit, Snapshotter};
pub(crate) use files::below;
pub use files::{ConfigFile, ConfigFiles, Target};
pub use release::ContainerdRelease;

use thiserror::Error;

/// Configuration that cannot be changed.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// Not TOML.
    #[error("cannot read {path}: it is not valid TOML")]
    Syntax {
        /// The file.
        path: String,
        /// The parser's message, with line and column.
        #[source]
        source: toml_edit::TomlError,
    },
    /// A version of the format that has other tables.
    #[error(
        "cannot configure containerd: {path} has version {version} of the format, known are 2 and 3: \
         `containerd config migrate` prints a newer version of it"
    )]
    Version {
        /// The file.
        path: String,
        /// The version that the file states; 1 if it states none.
        version: i64,
    },
    /// A key that holds something else than containerd expects there.
    #[error("cannot configure containerd: {key} in {path} is not a table")]
    Shape {
        /// The file.
        path: String,
        /// The key, with dots.
        key: String,
    },
    /// Output of `containerd --version` without a version.
    #[error("cannot configure containerd: it reports no version: {0:?}")]
    Release(String),
}
