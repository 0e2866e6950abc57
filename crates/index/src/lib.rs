//! Building SOCI indexes, and converting images into SOCI-enabled ones.
//!
//! An image comes from an [`ImageSource`] and goes to an [`ImageSink`]; [`convert()`] reads each
//! layer once, builds its zTOC on the way, and writes an image index that lists the image
//! manifests, annotated with their SOCI indexes, and the SOCI indexes themselves.

#![forbid(unsafe_code)]

mod convert;
mod create;
mod error;
mod image;
mod layer;
mod location;
mod options;
mod prefetch;
mod progress;
mod sink;
mod source;
mod transfer;
mod writer;

pub use convert::{Converted, ConvertedImage, WrittenIndex, convert};
pub use create::{CreatedIndex, create};
pub use error::IndexError;
pub use image::{EntryContent, Image, ImageEntry};
pub use location::{Destination, Format, Source};
pub use options::{ConvertOptions, DEFAULT_MIN_LAYER_SIZE, Platforms};
pub use progress::{LayerOutcome, Progress, Silent, Step};
pub use sink::{ArchiveSink, BlobWriter, DirSink, ImageSink, RegistrySink};
pub use source::{
    ArchiveSource, ImageSource, LayoutSource, MAX_DOCUMENT, RegistrySource, Root, SharedSource,
    StreamReader, verify,
};
pub use transfer::{Cancel, TransferMeter};
