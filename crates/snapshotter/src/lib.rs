//! Snapshot metadata, mounts, and containerd's Snapshots service.
//!
//! The snapshotter behaves like containerd's overlayfs snapshotter, except that Prepare of an
//! image layer first asks a [`LayerProvider`](soci_layer::LayerProvider) to mount the layer lazily.

#![forbid(unsafe_code)]

pub mod api;
mod call_gate;
mod calls;
mod client_copy;
mod compare;
mod comparisons;
mod create;
mod directories;
mod disk_usage;
mod error;
mod file_error;
mod filter;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzz;
mod idmap;
mod ids;
mod image_layer;
mod info_batch;
pub mod labels;
mod layer_mounts;
mod layer_states;
mod layer_uses;
mod leftovers;
mod local_layer;
mod lost_mounts;
mod lowerdirs;
mod metadata;
mod mounts;
mod prepare;
mod prepare_log;
mod preparing;
mod refusal;
mod removals;
mod restore;
mod service;
mod snapshot_dir;
mod snapshot_name;
mod snapshotter;
mod store;
mod sweep;
mod v015;

pub use error::SnapshotterError;
pub use file_error::FileError;
pub use filter::FilterError;
pub use info_batch::ListSnapshotsResponse;
pub use layer_states::{LayerCounts, LayerMode, LayerState};
pub use lost_mounts::Severed;
pub use metadata::MetadataError;
pub use mounts::needs_userxattr;
pub use refusal::RefusalReason;
pub use service::{SnapshotService, service};
pub use snapshotter::{Snapshotter, SnapshotterConfig};
pub use v015::OldMetadataError;
