//! What is reported of pulls: for `soci status` and metrics.

use std::time::Duration;

use soci_oci::Digest;

/// An image that is being pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageProgress {
    /// The image, as the client named it.
    pub reference: String,
    /// Digest of its manifest.
    pub manifest: Digest,
    /// containerd's namespace of the client that began.
    pub namespace: String,
    /// Time since the begin.
    pub elapsed: Duration,
    /// Compressed bytes that have arrived since then.
    pub downloaded: u64,
    /// Its layers, lowest first.
    pub layers: Vec<WorkProgress>,
}

/// A layer of an image that is being pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkProgress {
    /// Digest of the compressed layer.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Compressed bytes that have arrived.
    pub downloaded: u64,
    /// Uncompressed bytes that were unpacked.
    pub unpacked: u64,
    /// How far it is.
    pub state: PullState,
}

/// How far a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullState {
    /// It waits for its turn.
    Queued,
    /// It arrives, and is not unpacked yet.
    Downloading,
    /// It is unpacked while it arrives.
    Unpacking,
    /// It is unpacked, and waits for its Prepare.
    Ready,
    /// A snapshot has it.
    Committed,
}

/// What was done since the start of the daemon.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EagerTotals {
    /// Images that are being pulled.
    pub images_running: u64,
    /// Layers that are being pulled.
    pub layers_running: u64,
    /// Layers that were pulled.
    pub layers: u64,
    /// Layers that were given up or failed.
    pub layers_failed: u64,
    /// Compressed bytes that have arrived.
    pub downloaded: u64,
    /// Requests for them: chunks.
    pub requests: u64,
    /// Uncompressed bytes that were unpacked.
    pub unpacked: u64,
    /// Milliseconds for which layers were unpacked, each on its own.
    pub unpack_milliseconds: u64,
}
