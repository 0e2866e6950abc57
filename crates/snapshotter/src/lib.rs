//! Snapshot metadata, mounts, and containerd's Snapshots service.
//!
//! The snapshotter behaves like containerd's overlayfs snapshotter, except that Prepare of an
//! image layer first asks a [`LayerProvider`] to mount the layer lazily.

#![forbid(unsafe_code)]

pub mod api;
mod provider;
mod service;
mod snapshotter;

pub use provider::{LayerProvider, LayerRefusal, LayerRequest, MountedInfo, ProviderError};
pub use service::SnapshotService;
pub use snapshotter::{Snapshotter, SnapshotterConfig, SnapshotterError, service};
