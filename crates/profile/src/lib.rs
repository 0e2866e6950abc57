//! Start-up profiles: what starts of an image have read, the file in which that is stored and
//! travels, and the prefetch artifacts that are made from it. No I/O.

#![forbid(unsafe_code)]

mod artifact;
mod blocks;
mod format;
mod merged;
mod profile;
mod reads;
mod recording;

pub use artifact::{MEDIA_TYPE, artifact_manifest, newest, profile_of};
pub use blocks::{BLOCK, Blocks};
pub use format::{MAX_SIZE, ProfileError};
pub use merged::{Merged, MergedSpan};
pub use profile::Profile;
pub use reads::LayerReads;
pub use recording::{MAX_SPANS, ProfiledLayer, RecordedSpan, Recording};
