//! The one way in which this daemon unpacks layers: downloaded in parallel, verified, decompressed,
//! hashed and written at the same time, within a budget of memory for the whole daemon.
//!
//! [`Pipeline`] is the daemon's, [`ImageShare`] an image's part of it. [`stages`] has the threads of a
//! layer, [`download`] its requests, [`shares`] the rules by which images share.

mod block;
mod budget;
mod config;
mod decompressor;
mod download;
mod image_share;
mod piece;
mod program;
mod progress;
mod request;
mod shares;
mod stages;
mod verdict;

pub use config::{Demand, ImageLimits, PipelineConfig, SpeedLimits, StoredCheckpoints};
pub use decompressor::{Decompressor, Decompressors};
pub(crate) use image_share::{Beginning, Begun};
pub use image_share::{ImageShare, Pipeline};
pub use program::ProgramError;
pub use progress::{LayerProgress, PipelineUsage, Stage, StageTimings};
pub use request::{CompressedSink, LayerBlob, PipelineRequest, UnpackedLayer};
