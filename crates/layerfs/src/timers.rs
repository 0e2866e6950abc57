//! Durations of reads and listings, reported to a callback; the daemon's feeds metrics.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A callback that receives the duration of each finished operation.
#[derive(Clone)]
pub struct Timer(Arc<dyn Fn(Duration) + Send + Sync>);

impl Timer {
    /// A timer that calls `report`, on the thread that answers the request.
    #[must_use]
    pub fn new(report: impl Fn(Duration) + Send + Sync + 'static) -> Self {
        Self(Arc::new(report))
    }
}

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timer").finish_non_exhaustive()
    }
}

/// The timers of a layer's mounts. [`Default`] measures nothing.
#[derive(Debug, Clone, Default)]
pub struct Timers {
    /// READs of content, from request to answer, fetching included.
    pub read: Option<Timer>,
    /// READDIRs and READDIRPLUSs.
    pub readdir: Option<Timer>,
}

/// A running measurement. It is reported only when stopped.
pub(crate) struct Running(Option<(Instant, Timer)>);

impl Running {
    /// Costs two atomic operations and a read of the clock; neither is a system call.
    pub(crate) fn start(timer: Option<&Timer>) -> Self {
        Self(timer.map(|timer| (Instant::now(), timer.clone())))
    }

    pub(crate) fn stop(self) {
        if let Some((start, Timer(report))) = self.0 {
            report(start.elapsed());
        }
    }
}
