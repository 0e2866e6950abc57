//! Images that are pulled eagerly: the first Prepare of an image starts all its layers from that
//! one upwards, and each further Prepare waits for its own.
//!
//! [`EagerLayers`] is a [`LayerProvider`](soci_layer::LayerProvider) in front of that of lazy
//! layers. A `job` is the work on one image, known by its manifest; a `work` that on one layer, known
//! by its chain ID and shared by the images that have it. The crate `unpack` has the pipeline from a
//! registry to a directory.

#![forbid(unsafe_code)]

mod content_sink;
mod error;
mod folder;
mod image;
mod job;
mod jobs;
mod labels;
mod layer_puller;
mod layer_work;
mod provider;
mod puller;
mod report;
mod works;

pub use error::EagerError;
pub use layer_puller::PullConfig;
pub use provider::{EagerConfig, EagerLayers, EagerMode, LowerLayers};
pub use report::{EagerTotals, ImageProgress, PullState, WorkProgress};
