//! Fetches the spans of lazy layers from registries into the layer store: one scheduler for the whole
//! daemon with single flight, priorities, coalesced requests, readahead and background filling.
//!
//! # What happens when a read misses
//!
//! 1. The file system calls [`LayerData::try_read`]. If all spans of the range are stored, that
//!    answers; else it calls [`LayerData::read`] with what is to be called with the answer
//!    (`lazy_layer`), and its thread is free.
//! 2. The read wants each missing span with priority *demand* (`schedule::Schedule::want`). A span
//!    that is on its way already gains a waiter; one that failed a moment ago, or whose origin does
//!    not answer (`schedule::circuit`), is an error immediately. A sequential reader wants spans
//!    ahead as well (`readahead`).
//! 3. The schedule decides which request is next, without I/O: the most urgent priority, layers by
//!    turns, within the limits of their origin (`schedule::requests`). What has to be done comes back
//!    as effects, which `driver` carries out: a task for each request.
//! 4. The task receives the body and cuts it into spans (`request`, `body`): one that breaks is
//!    resumed, one that is slow is requested again, a span alone may come in two halves. The memory
//!    for a span is acquired once its first bytes are there (`budget`).
//! 5. A thread checks a span's digest and inflates it (`inflate_pool`, `span_work`); what a reader
//!    waits for has threads of its own. A span that does not match is fetched again, alone, as often
//!    as the configuration says.
//! 6. The waiters get their bytes, then the span is stored, then those that came in between are
//!    answered (`delivery`). A span that the disk refuses stays in memory for a while (`unsaved`).
//! 7. The deadline of the first waiter bounds all of this. A failure is a [`ReadError`] for every
//!    waiter, a line in the log, and the `error` of the layer (`layer_failure`); for half a second
//!    the span fails immediately, then it may be fetched again.

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
mod oversized;
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
pub use lazy_layer::LazyLayer;
pub use oversized::Oversized;
pub use playback::{Playback, Played, PlayedLayer, ProfileSpan};
pub use read_error::{Cause, ReadError};
pub use read_log::ReadLog;
pub use span_key::StartId;
pub use stats::{PriorityStats, Stats};
