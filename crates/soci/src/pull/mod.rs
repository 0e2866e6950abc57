//! Pulling an image through containerd's API with a remote snapshotter.
//!
//! What containerd's own unpacker does, step by step: content under a lease, one `Prepare` per
//! layer with the labels that a lazy snapshotter needs, download and apply only where the
//! snapshotter does not take the layer over, and an image record at the end.

mod documents;
mod downloads;
mod outcome;
mod unpack;

pub(crate) use documents::{ImageDocuments, fetch};
pub(crate) use downloads::Downloads;
pub(crate) use outcome::{Layer, State};
pub(crate) use unpack::{Active, Unpack, all_are_lazy};
