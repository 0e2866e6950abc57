//! The stores on disk: OCI image layouts ([`content`]), the spans of lazy layers ([`LayerStore`]),
//! the artifact database of `soci` ([`artifacts`]), start-up profiles ([`ProfileFiles`]), and the lock
//! of the root folder ([`RootLock`]).

#![forbid(unsafe_code)]

pub mod artifacts;
mod atomic_file;
mod clock;
pub mod content;
mod disk;
mod disk_fault;
mod durability;
mod error;
mod flusher;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzz;
mod layer_folder;
mod layer_key;
mod layer_store;
mod leftovers;
mod limits;
mod page_cache;
mod private;
mod profile_files;
mod reclaim;
mod root_lock;
mod span_states;
mod spans_file;
mod standing;
mod store_state;
mod stored_layer;
mod stored_ztocs;

pub use atomic_file::write_file;
pub use error::StoreError;
pub use layer_folder::check_span_lengths;
pub use layer_key::LayerKey;
pub use layer_store::{LayerStore, LayerStoreConfig, StoreUsage};
pub use leftovers::{Leftover, LeftoverKind, find as find_leftovers};
pub use profile_files::{ProfileFileError, ProfileFiles, StartMark, StoredProfile};
pub use reclaim::Trimmed;
pub use root_lock::{Owner, RootLock};
pub use standing::{SourceHealth, Standing};
pub use stored_layer::{ReadOutcome, StoredLayer};
pub use stored_ztocs::StoredZtocs;
