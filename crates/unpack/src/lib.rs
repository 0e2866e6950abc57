//! The eager path: a layer that is not lazy is fetched whole, verified, and applied to a directory
//! exactly as containerd's overlayfs snapshotter would leave it.
//!
//! [`Unpacker`] does all of it. [`apply`] is the part that knows tar and file system, and nothing
//! of registries.

#![forbid(unsafe_code)]

mod ahead;
mod apply;
mod containerd;
mod decompress;
mod error;
mod image;
mod unpacker;

pub use apply::lower::{DirectoryAttributes, Lower, LowerLayer};
pub use apply::lower_directory::LowerDirectory;
pub use apply::{ApplyOptions, apply};
pub use containerd::ContainerdContent;
pub use decompress::{Compression, decompress};
pub use error::{ApplyError, UnpackError};
pub use image::LayerOfImage;
pub use unpacker::{Target, UnpackConfig, Unpacked, Unpacker};
