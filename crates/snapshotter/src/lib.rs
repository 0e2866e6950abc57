//! Snapshot metadata, mounts, and containerd's Snapshots service.
//!
//! The snapshotter behaves like containerd's overlayfs snapshotter, except that Prepare of an
//! image layer first asks a [`LayerProvider`](soci_layer::LayerProvider) to mount the layer lazily.

#![forbid(unsafe_code)]

pub mod api;
mod calls;
mod directories;
mod disk_usage;
mod error;
mod filter;
mod info_batch;
mod keyed_lock;
pub mod labels;
mod layers;
mod lowers;
mod metadata;
mod mounts;
mod outcome;
mod place;
mod prepare;
mod refusals;
mod remap;
mod restore;
mod service;
mod severed;
mod snapshotter;
mod sweep;
mod takeover;
mod unpack;

pub use error::SnapshotterError;
pub use filter::FilterError;
pub use info_batch::ListSnapshotsResponse;
pub use layers::{LayerCounts, LayerMode, LayerState};
pub use mounts::needs_userxattr;
pub use service::{SnapshotService, service};
pub use severed::Severed;
pub use snapshotter::{Snapshotter, SnapshotterConfig};
pub use takeover::OldMetadataError;
