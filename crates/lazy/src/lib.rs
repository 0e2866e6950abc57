//! Lazy layers: from the labels of a Prepare to a mounted layer, or the reason why not.
//!
//! [`LazyLayers`] composes four parts: the index cache finds an image's SOCI index once, the layer
//! opener opens a layer once for all its users (and those above it ahead of their Prepare), the
//! mount table serves the mounts, and the sweeper removes what no mount uses any more. A layer that
//! cannot be lazy is unpacked.

#![forbid(unsafe_code)]

mod admission;
mod artifacts;
mod config;
mod container_start;
mod hint_budget;
mod hinted_file;
mod hinted_start;
#[cfg(test)]
mod hinting;
mod hints;
mod holder_link;
mod image_counts;
mod image_layer;
mod image_store;
mod implied;
mod index_cache;
mod index_files;
mod index_uses;
mod inherited;
mod label_check;
mod layer_loader;
mod layer_opener;
mod lazy_layers;
mod lease;
mod library_search;
mod local_copy;
mod local_unpack;
mod lookup_cache;
mod metering;
mod mount_table;
mod open_layer;
mod opened_ahead;
mod outages;
mod page_cache;
mod page_cache_process;
mod player;
mod preflight;
mod profile_config;
mod profile_report;
mod provider;
mod publisher;
mod reader_pause;
mod report;
mod repository_use;
mod restore;
mod sources;
mod start_order;
mod start_up;
mod store_limit;
mod store_work;
mod sweeper;
mod tree_memory;
mod unsaved_indexes;
mod verdict;
mod verifier;
mod view;
mod ztoc_memory;

pub use artifacts::Artifacts;
pub use config::{Components, LazyConfig};
pub use hints::HintConfig;
pub use image_store::ImageStore;
pub use inherited::InheritedError;
pub use lazy_layers::LazyLayers;
pub use page_cache::PageCacheProgram;
pub use page_cache_process::read_into_page_cache;
pub use preflight::{PreflightError, preflight};
pub use profile_config::ProfileConfig;
pub use profile_report::{PlayingReport, ProfileCounts, ProfileReport};
pub use report::MountReport;
pub use repository_use::needs_repository;
pub use soci_discovery::{LazyRegistries, Policy};
pub use soci_fetch::{Fill, FillState};
pub use start_order::StartOrigin;
pub use tree_memory::MemoryLimits;
