//! What the demo, the benchmarks and the end-to-end tests have in common: starting an image lazily
//! and with overlayfs, both through the same throttled registry, and what that cost.

#![forbid(unsafe_code)]

pub mod cli;
mod program;
pub mod restart;
pub mod start;
pub mod table;

pub use program::run;
pub use start::{Start, start_lazily, start_with_overlayfs};
pub use table::Table;
