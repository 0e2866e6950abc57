//! The test kit itself: its daemons, images and proxy. Needs root, containerd, runc and docker-registry.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod daemons;
mod image;
mod proxy;
