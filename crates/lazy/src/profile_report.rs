//! What start-up profiles have done and are doing, for status and metrics.

use soci_oci::Digest;

use crate::start_order::StartOrigin;

/// What start-up profiles have done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProfileCounts {
    /// Number of starts that were recorded.
    pub recorded: u64,
    /// Number of profiles whose playing began.
    pub played: u64,
    /// Number of profiles that were stopped because too little of them was used.
    pub stopped: u64,
    /// Number of profiles that are playing.
    pub playing: u64,
    /// Compressed bytes that they fetched.
    pub bytes: u64,
    /// Part of these bytes that readers used.
    pub used_bytes: u64,
}

/// A profile that is playing.
#[derive(Debug, Clone)]
pub struct PlayingReport {
    /// The name of the image.
    pub reference: String,
    /// Its manifest.
    pub manifest: Digest,
    /// Where the profile comes from.
    pub origin: StartOrigin,
    /// Number of spans that it lists.
    pub spans: u64,
    /// Compressed bytes that it fetched.
    pub bytes: u64,
    /// Part of these bytes that readers used.
    pub used_bytes: u64,
    /// It waits because too little is used.
    pub held: bool,
    /// Nothing of it is left to be fetched; its use is counted until the start is over.
    pub ended: bool,
}

/// Start-up profiles of a daemon.
#[derive(Debug, Clone, Default)]
pub struct ProfileReport {
    /// Starts are recorded.
    pub enabled: bool,
    /// What they have done.
    pub counts: ProfileCounts,
    /// Number of profiles on disk.
    pub stored: u64,
    /// Their size in bytes.
    pub stored_bytes: u64,
    /// The profiles that are playing.
    pub playing: Vec<PlayingReport>,
}
