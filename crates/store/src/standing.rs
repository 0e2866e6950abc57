//! What decides whether spans of a layer may be evicted: whether a container uses it, and whether its
//! source answers.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Time for which an answer of a source counts as proof that spans can be fetched again.
const PROOF: Duration = Duration::from_secs(600);

/// The state of a layer's source, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceHealth {
    /// It was not checked for a while.
    Unknown,
    /// It answered a short time ago: evicted spans can be fetched again.
    Answers,
    /// It failed when it was asked last.
    Fails,
}

/// What decides whether spans of a layer may be evicted.
#[derive(Debug, Default)]
pub struct Standing {
    in_use: AtomicBool,
    /// 0: not asked, 1: answered, 2: failed.
    source: AtomicU8,
    answered: Mutex<Option<Instant>>,
}

impl Standing {
    /// Whether a container, running or stopped, has a snapshot on the layer.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        self.in_use.load(Ordering::Relaxed)
    }

    /// Sets whether a container has a snapshot on the layer.
    pub fn set_in_use(&self, in_use: bool) {
        self.in_use.store(in_use, Ordering::Relaxed);
    }

    /// Notes that the source answered a request for the layer, or failed.
    pub fn note_source(&self, answered: bool) {
        if answered {
            *self.answered.lock() = Some(Instant::now());
        }
        self.source
            .store(if answered { 1 } else { 2 }, Ordering::Relaxed);
    }

    /// Returns the state of the source, as far as it is known.
    #[must_use]
    pub fn source(&self) -> SourceHealth {
        match self.source.load(Ordering::Relaxed) {
            0 => SourceHealth::Unknown,
            1 => {
                let answered = *self.answered.lock();
                match answered.is_some_and(|at| at.elapsed() < PROOF) {
                    true => SourceHealth::Answers,
                    false => SourceHealth::Unknown,
                }
            }
            _ => SourceHealth::Fails,
        }
    }
}
