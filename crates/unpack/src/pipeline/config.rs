//! Limits of the pipeline: of the whole daemon, and of one image.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use soci_oci::Digest;
use soci_ztoc::EntryPoints;

use super::decompressor::Decompressors;
use crate::UnpackLimits;

/// Returns whether readers of containers wait for the network.
#[derive(Clone)]
pub struct Demand(Arc<dyn Fn() -> bool + Send + Sync>);

impl Demand {
    /// Asks `waits` before each request.
    #[must_use]
    pub fn new(waits: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(waits))
    }

    /// Whether readers wait now.
    #[must_use]
    pub fn waits(&self) -> bool {
        (self.0)()
    }
}

impl fmt::Debug for Demand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Demand").field(&self.waits()).finish()
    }
}

/// Finds the checkpoints of a layer whose zTOC is stored on this machine.
#[derive(Clone)]
pub struct StoredCheckpoints(Arc<FindCheckpoints>);

type FindCheckpoints = dyn Fn(&Digest) -> Option<EntryPoints> + Send + Sync;

impl StoredCheckpoints {
    /// Asks `find` for each layer, on a thread that it may block.
    #[must_use]
    pub fn new(find: impl Fn(&Digest) -> Option<EntryPoints> + Send + Sync + 'static) -> Self {
        Self(Arc::new(find))
    }

    pub(super) fn of(&self, layer: &Digest) -> Option<EntryPoints> {
        (self.0)(layer)
    }
}

impl fmt::Debug for StoredCheckpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredCheckpoints").finish_non_exhaustive()
    }
}

/// When a registry is too slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpeedLimits {
    /// Time from a layer's first request to its first byte.
    pub first_byte: Duration,
    /// Fewest bytes per second of a layer after that, while something is read of it.
    pub floor: u64,
    /// Time over which those are counted, and the longest time that a registry may ask to wait.
    pub period: Duration,
}

impl Default for SpeedLimits {
    fn default() -> Self {
        Self {
            first_byte: Duration::from_secs(20),
            floor: 64 << 10,
            period: Duration::from_secs(15),
        }
    }
}

/// Limits of the whole daemon.
#[derive(Debug, Clone)]
pub struct PipelineConfig {
    /// Limit of memory for all that is on its way through the pipeline, in bytes: compressed bytes, what is
    /// inflated ahead, windows of zstd, and 4 MiB for each layer in work. `None`: 32 MiB for each core, at
    /// least 96 MiB and at most 512 MiB. A window of zstd larger than its part is used alone.
    pub memory: Option<u64>,
    /// Limit of ranged requests under way; `None`: that of the images.
    pub downloads: Option<usize>,
    /// Limit of layers that are decompressed and written concurrently; `None`: two for each core, at
    /// least 4 and at most 24, and one more that the same image does not get. Together they have at most a
    /// quarter of the memory.
    pub unpacks: Option<usize>,
    /// Number of threads that inflate parts of a gzip layer ahead of their turn; `None`: two less than
    /// there are cores, at most 8.
    pub inflate_threads: Option<usize>,
    /// Where these threads enter a layer; without checkpoints they search for a block. They need not be
    /// right: no output depends on them.
    pub checkpoints: Option<StoredCheckpoints>,
    /// Limits of one layer.
    pub limits: UnpackLimits,
    /// When a registry is too slow.
    pub speed: SpeedLimits,
    /// Programs that decompress.
    pub decompressors: Decompressors,
    /// What comes before all requests of the pipeline.
    pub demand: Option<Demand>,
    /// Whether the files of a layer are on disk before it counts as unpacked. containerd does not wait
    /// for that unless it is configured to.
    pub durable: bool,
}

impl Default for PipelineConfig {
    fn default() -> Self {
        Self {
            memory: None,
            downloads: None,
            unpacks: None,
            inflate_threads: None,
            checkpoints: None,
            limits: UnpackLimits::default(),
            speed: SpeedLimits::default(),
            decompressors: Decompressors::default(),
            demand: None,
            durable: true,
        }
    }
}

/// Limits of one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageLimits {
    /// Limit of ranged requests under way.
    pub downloads: usize,
    /// Limit of layers that are decompressed and written concurrently.
    pub unpacks: usize,
    /// Most bytes of one ranged request; fewer, where half the memory for compressed bytes would not hold as
    /// many requests as there may be. `None`: each layer in one request.
    pub chunk: Option<u64>,
}

impl Default for ImageLimits {
    fn default() -> Self {
        Self {
            downloads: 3,
            unpacks: 1,
            chunk: Some(8 << 20),
        }
    }
}
