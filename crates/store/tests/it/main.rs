//! The layer store on a real file system.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod eviction;
mod full_disk;
mod layers;
mod page_cache;
