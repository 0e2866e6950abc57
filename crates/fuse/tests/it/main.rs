//! The codec, and a pool that serves real mounts. Needs root and /dev/fuse.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod codec;
mod crowd;
mod pool;
