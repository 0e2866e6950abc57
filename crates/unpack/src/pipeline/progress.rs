//! How far a layer is.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

/// What is being done with a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Nothing yet.
    Queued,
    /// It is downloaded, and waits for its turn to be unpacked.
    Downloading,
    /// It is downloaded, decompressed and written.
    Unpacking,
    /// It is verified, and made durable.
    Syncing,
    /// It is complete.
    Done,
}

/// Counters of one layer, which can be read at any time.
#[derive(Debug, Default)]
pub struct LayerProgress {
    /// Compressed bytes that have arrived. Falls back when the layer is fetched again.
    pub downloaded: AtomicU64,
    /// Ranged requests that were made.
    pub requests: AtomicU64,
    /// Uncompressed bytes that were applied.
    pub unpacked: AtomicU64,
    /// Number of parts of the layer that were inflated ahead from a checkpoint.
    pub entered: AtomicU64,
    /// Number of those that were inflated ahead from a block that was searched for.
    pub guessed: AtomicU64,
    stage: AtomicU8,
}

impl LayerProgress {
    /// What is being done.
    #[must_use]
    pub fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Relaxed) {
            0 => Stage::Queued,
            1 => Stage::Downloading,
            2 => Stage::Unpacking,
            3 => Stage::Syncing,
            _ => Stage::Done,
        }
    }

    pub(crate) fn set_stage(&self, stage: Stage) {
        let number = match stage {
            Stage::Queued => 0,
            Stage::Downloading => 1,
            Stage::Unpacking => 2,
            Stage::Syncing => 3,
            Stage::Done => 4,
        };
        self.stage.store(number, Ordering::Relaxed);
    }

    pub(crate) fn restart(&self) {
        self.downloaded.store(0, Ordering::Relaxed);
        for counter in [&self.unpacked, &self.entered, &self.guessed] {
            counter.store(0, Ordering::Relaxed);
        }
    }
}

/// How long the parts of the work took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StageTimings {
    /// All of it.
    pub total: Duration,
    /// Until the last compressed byte.
    pub download: Duration,
    /// Waiting for a slot to unpack.
    pub queued: Duration,
    /// Making the files durable.
    pub sync: Duration,
}

/// What the pipeline is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PipelineUsage {
    /// Bytes in memory, of the budget.
    pub memory: u64,
    /// No fewer than there were at any time: the most of each part.
    pub memory_peak: u64,
    /// Ranged requests under way.
    pub requests: u64,
    /// Ranged requests that wait for others to end, or for memory.
    pub requests_waiting: u64,
    /// Layers that are decompressed and written.
    pub unpacking: u64,
    /// Layers that wait for it.
    pub unpacks_waiting: u64,
}
