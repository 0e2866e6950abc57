//! containerd through its API: content, images, leases.

mod connection;
mod images;
mod read;
mod sink;
mod source;
mod write;

pub(crate) use connection::{Containerd, failed, snapshotter_failed};
pub(crate) use images::{ImageRecord, api_descriptor, images_with_target, record, set_labels};
pub(crate) use read::{Content, LayerFile};
pub(crate) use sink::ContainerdSink;
pub(crate) use source::{ContainerdSource, KnownZtocs};
pub(crate) use write::{update_labels, write, write_bytes};
