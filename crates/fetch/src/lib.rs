//! Gets the spans of lazy layers from registries into the layer store: one scheduler for the whole
//! daemon with single flight, priorities, coalesced requests, readahead and background filling.
//!
//! [`LayerData`] is the edge to the file system.

#![forbid(unsafe_code)]

mod background;
mod budget;
mod config;
mod core;
mod fetcher;
mod filling;
mod inflate_pool;
mod layer;
mod layer_data;
mod lazy_layer;
mod limit;
mod pending_read;
mod priority;
mod readahead;
mod request;
mod schedule;
mod span_work;
mod stats;
pub mod testing;
mod unsaved;

pub use config::{BackgroundConfig, DropPolicy, FetchConfig};
pub use fetcher::SpanFetcher;
pub use filling::BackgroundCounts;
pub use layer_data::{LayerData, LayerStatus, ReadDone, ReadError};
pub use lazy_layer::LazyLayer;
pub use stats::{PriorityStats, Stats};
