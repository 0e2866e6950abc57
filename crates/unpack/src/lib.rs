//! The eager path: a layer that is not lazy is fetched, verified, and applied to a directory as
//! containerd's overlayfs snapshotter would.
//!
//! [`Unpacker`] does all of it. [`apply`] handles tar and file system without a registry.

#![forbid(unsafe_code)]

mod ahead;
mod apply;
mod decompress;
mod downloads;
mod error;
mod image;
mod keys;
mod unpacker;

pub use apply::limits::UnpackLimits;
pub use apply::lower::{DirectoryAttributes, Lower, LowerLayer};
pub use apply::lower_directory::LowerDirectory;
pub use apply::{ApplyOptions, apply};
pub use decompress::{Compression, decompress};
pub use downloads::DownloadConfig;
pub use error::{ApplyError, UnpackError};
pub use image::LayerOfImage;
pub use keys::FIRST_BYTE_KEY;
pub use unpacker::{Target, UnpackConfig, Unpacked, Unpacker};
