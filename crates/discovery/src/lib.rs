//! Finds the SOCI index of an image: one look-up for the daemon and for every command of `soci`.
//!
//! [`find`] tries the digest that the client names, the annotation of the image manifest (version
//! 2), and the registry's referrers (version 1), in this order, the last two only where the
//! [`Policy`] allows them. [`NoIndex`] keeps apart an image without an index and a look-up that
//! failed.

#![forbid(unsafe_code)]

mod find;
mod lazy_registries;
mod no_index;
mod policy;
mod report;
mod source;
mod ztoc_refusal;

pub use find::{Found, FoundBy, ImageQuery, MAX_INDEX_SIZE, find, referring_index};
pub use lazy_registries::LazyRegistries;
pub use no_index::NoIndex;
pub use policy::Policy;
pub use report::{LazyReport, lazy_report, reason_without_ztoc};
pub use source::{ManifestSource, RegistryManifests};
pub use ztoc_refusal::refusal_without_ztoc;
