//! Indexing images as they are pushed: a push event comes in ([`event`]), waits in a durable queue
//! ([`Queue`]), and a worker ([`WorkerPool`]) writes the indexed image beside it ([`Indexer`]).

#![forbid(unsafe_code)]

pub mod event;
mod filter;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzz;
mod indexer;
mod job;
mod lambda;
mod policy;
mod poll;
mod queue;
mod queue_file;
pub mod service;
mod worker;

pub use event::Push;
pub use filter::{Filters, ImageFilterError};
pub use indexer::{Failure, ImageIndexer, IndexSettings, Indexer, Outcome, Versions};
pub use job::{Job, JobState};
pub use lambda::serve as serve_lambda;
pub use policy::{DEFAULT_TAG_SUFFIX, Decision, PushPolicy};
pub use poll::poll;
pub use queue::{Added, Claim, Counts, Finish, Queue, WorkerId};
pub use queue_file::QueueError;
pub use worker::{PoolSettings, WorkerPool};
