//! An image at a registry, looked into without pulling it: its SOCI index, the file trees of its
//! layers, and the spans of the files that are read.

mod image;
mod layer;
mod local_layer;
mod mounted;
mod node;
mod span_reader;
mod view;

pub(crate) use image::{ImagePath, RemoteArgs, RemoteImage, reason};
pub(crate) use layer::{RemoteLayer, open_all, open_image};
pub(crate) use mounted::{MountedImage, is_mounted};
pub(crate) use node::Node;
pub(crate) use span_reader::SpanReader;
pub(crate) use view::{View, kind_word, mode_text};
