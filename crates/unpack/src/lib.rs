//! The eager path: a layer that is not lazy is fetched, verified, and applied to a directory as
//! containerd's overlayfs snapshotter would.
//!
//! [`Pipeline`] does all of it; [`Unpacker`] uses it for single layers of images that are lazy otherwise.
//! [`apply`] handles tar and file system without a registry.

#![forbid(unsafe_code)]

mod ahead;
mod apply;
mod decompress;
mod downloads;
mod error;
mod flush;
mod image;
mod keys;
mod pipeline;
mod scratch;
mod unpacker;

pub use apply::limits::UnpackLimits;
pub use apply::lower_directory::LowerDirectory;
pub use apply::settle::ImpliedDirectories;
pub use apply::{ApplyOptions, apply};
pub use decompress::{Compression, decompress};
pub use downloads::DownloadConfig;
pub use error::{ApplyError, UnpackError, fault_of};
pub use image::{ImageLayers, LayerDescription, LayerOfImage};
pub use keys::FIRST_BYTE_KEY;
pub use pipeline::{
    CompressedSink, Decompressor, Decompressors, Demand, ImageLimits, ImageShare, LayerBlob,
    LayerProgress, Pipeline, PipelineConfig, PipelineRequest, PipelineUsage, ProgramError,
    SpeedLimits, Stage, StageTimings, StoredCheckpoints, UnpackedLayer,
};
pub use scratch::{empty_folder, prepare_folder};
pub use unpacker::{Target, UnpackConfig, Unpacked, Unpacker};
