//! Lazy layers: from the labels of a Prepare to a mounted layer, or the reason why not.
//!
//! An image's SOCI index is found once; the first layer that is asked for starts the preparation of
//! the others, because containerd asks for one after another. A layer that cannot be lazy is unpacked. A lazy layer is served once however
//! many snapshots, images and namespaces use it, and forgotten when the last of them goes.

#![forbid(unsafe_code)]

mod artifacts;
mod continuing;
mod discovery;
mod held;
mod image_counts;
mod kept;
mod labels;
mod layers;
mod look;
mod lower_tree;
mod metering;
mod opening;
mod parts;
mod provider;
mod proving;
mod report;
mod sources;
mod unpacking;
mod verdicts;
mod ztoc_memory;

pub use artifacts::Artifacts;
pub use held::HeldError;
pub use parts::{LazyConfig, Parts};
pub use provider::LazyLayers;
pub use proving::{ProvingError, prove};
pub use report::MountReport;
