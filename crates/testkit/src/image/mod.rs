//! Images made for tests: from declarations, from folders, from Debian packages.

mod builder;
mod cache;
mod content;
mod debian;
pub mod diff;
mod layer;
pub mod layout;
mod python;
mod readers;
mod samples;
mod sink;

pub(crate) use cache::cached;
pub(crate) use debian::debian_mirror;

pub use builder::{ImageBuilder, OciImage, OciLayer};
pub use content::Content;
pub use debian::debian_with_systemd;
pub use layer::Layer;
pub use python::{APP_OUTPUT, APP_SCRIPT, PYTHON_TAG, python_image, torch_image};
pub use readers::{READER_MODES, READER_SCRIPT, readers_image};
pub use samples::{
    busybox_image, busybox_layer, large_file_image, pause_image, shell_layer, small_image,
    small_image_data, three_layers,
};
pub use sink::{LayerCompression, LayerSink};
