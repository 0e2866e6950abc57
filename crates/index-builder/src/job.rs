//! A push that waits to be indexed, and what came of it.

use serde::{Deserialize, Serialize};

use crate::{Outcome, Push};

/// A push in the queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its number; later pushes have higher ones.
    pub id: u64,
    /// What was pushed.
    pub push: Push,
    /// Where it stands.
    pub state: JobState,
    /// How often work on it has begun.
    pub attempts: u32,
    /// When the event came, in ms since 1970.
    pub received_ms: u64,
    /// When the last attempt began, in ms since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_ms: Option<u64>,
    /// When it ended, in ms since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_ms: Option<u64>,
    /// Why the last attempt failed, or why the image was not indexed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
}

/// Where a job stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "name")]
pub enum JobState {
    /// It waits for a worker.
    Waiting {
        /// The moment before which it is not begun, in ms since 1970.
        due_ms: u64,
    },
    /// A worker has it.
    Running {
        /// The name of the worker's process.
        worker: String,
    },
    /// The image is indexed.
    Done,
    /// The image is not to be indexed; `reason` says why.
    Skipped,
    /// Given up; `reason` says why.
    Dead,
}

impl JobState {
    /// Returns the state's name, as `soci index-builder list --state` has it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Waiting { .. } => "waiting",
            Self::Running { .. } => "running",
            Self::Done => "done",
            Self::Skipped => "skipped",
            Self::Dead => "dead",
        }
    }

    /// Whether there is still something to do.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        matches!(self, Self::Waiting { .. } | Self::Running { .. })
    }
}

impl Job {
    /// Time of the last attempt in ms, once it has ended.
    #[must_use]
    pub fn duration_ms(&self) -> Option<u64> {
        Some(self.finished_ms?.saturating_sub(self.started_ms?))
    }
}
