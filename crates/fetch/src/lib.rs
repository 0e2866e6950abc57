//! Fetches the spans of lazy layers from registries into the layer store: one scheduler for the whole
//! daemon with single flight, priorities, coalesced requests, readahead and background filling.
//!
//! [`LayerData`] is the interface to the file system. `schedule` decides, `driver` acts.

#![forbid(unsafe_code)]

mod abandoned;
mod activity;
mod background;
mod background_queue;
mod body;
mod budget;
#[cfg(test)]
mod concurrency;
mod config;
mod context;
mod delivery;
mod driver;
mod fetcher;
mod fill_progress;
mod inflate_pool;
mod inflight_limit;
mod layer_data;
mod layer_failure;
mod lazy_layer;
mod pace;
mod page_cache_view;
mod pending_read;
mod playback;
mod priority;
mod read_backwards;
mod read_error;
mod read_log;
mod readahead;
mod reader_marks;
mod request;
mod request_error;
mod schedule;
mod served_layer;
mod span_key;
mod span_work;
mod stats;
mod sync;
#[cfg(feature = "test-doubles")]
pub mod testing;
mod unsaved;

pub use config::{BackgroundConfig, DropPolicy, FetchConfig};
pub use fetcher::SpanFetcher;
pub use fill_progress::{BackgroundCounts, Fill, FillState};
pub use layer_data::{LayerData, LayerStatus, ReadDone, StillWanted};
pub use layer_failure::{FailureClass, LayerFailure};
pub use lazy_layer::{LazyLayer, Oversized};
pub use playback::{Playback, Played, PlayedLayer, ProfileSpan};
pub use read_error::{Cause, ReadError};
pub use read_log::ReadLog;
pub use stats::{PriorityStats, Stats};
