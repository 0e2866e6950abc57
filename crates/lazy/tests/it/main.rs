//! From labels to a mounted layer. Needs root, FUSE, docker-registry and containerd.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too, and removes what it made"
)]

mod full_disk;
mod image_store;
mod implied;
mod independence;
mod large_ztoc;
mod log;
mod outages;
mod provider;
mod range_answers;
mod sharing;
mod verdict;
