//! A layer's file tree and its FUSE adapter, without a mount and through one. Needs root, FUSE, overlayfs.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod first_read;
mod hostile;
mod kinds;
mod requests;
mod resolve;
#[path = "../support/mod.rs"]
mod support;
mod tree;
