//! Applying layers to a directory, compared with containerd. Needs root, containerd and docker-registry.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod apply;
mod containerd;
mod downloads;
mod generated_layer;
mod hostile;
mod memory;
mod pipeline;
mod unpacker;
