//! The configuration file: every key and its defaults, what is refused, and the file that is installed.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod file;
mod shipped;
