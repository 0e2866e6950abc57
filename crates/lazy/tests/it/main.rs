//! From labels to a mounted layer. Needs root, FUSE and docker-registry.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod provider;
