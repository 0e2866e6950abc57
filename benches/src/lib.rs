//! The parts of the demo and the benchmarks: starts of an image, lazily and with overlayfs, through the same
//! throttled registry, and their costs.

#![forbid(unsafe_code)]

pub mod cli;
pub mod cold;
pub mod eager;
pub mod index_builder;
pub mod keep;
pub mod neighbours;
pub mod nodes;
mod processor_time;
mod program;
pub mod restart;
pub mod start;
pub mod table;
pub mod verify;

pub use program::run;
pub use start::{Start, start_lazily, start_with_overlayfs};
pub use table::Table;
