//! The installer over a tree, and the configuration that it writes read by real containerds.

#![forbid(unsafe_code)]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod config;
mod tree;
