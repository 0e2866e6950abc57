//! containerd's API: the labels that it and its clients exchange, and (with the feature `client`)
//! a client: content, leases, images and snapshots of one namespace.

#![forbid(unsafe_code)]

#[cfg(feature = "client")]
mod client;
#[cfg(feature = "client")]
mod content;
#[cfg(feature = "client")]
mod error;
#[cfg(feature = "client")]
mod images;
pub mod labels;
#[cfg(feature = "client")]
mod lease;
#[cfg(feature = "client")]
mod node;
#[cfg(feature = "client")]
mod snapshots;

#[cfg(feature = "client")]
pub use {
    client::{Containerd, Namespace, within},
    containerd_client::{tonic::Code, types::Mount},
    content::{BlobInfo, BlobStream, BlobWriter, Content},
    error::{ContainerdError, Refusal},
    images::{ImageRecord, Images},
    node::Plugin,
    snapshots::{Snapshots, apply},
};
