//! How long reads and listings take, told to histograms that the daemon shows as metrics.

use std::time::Instant;

use prometheus::Histogram;

/// Histograms in microseconds, of all mounts of a layer. [`Default`] measures nothing.
#[derive(Debug, Clone, Default)]
pub struct Timers {
    /// READs of content, to their answer, also when that had to be fetched.
    pub read: Option<Histogram>,
    /// READDIRs and READDIRPLUSs.
    pub readdir: Option<Histogram>,
}

/// A measurement that runs. Nothing is told unless it is stopped.
pub(crate) struct Running(Option<(Instant, Histogram)>);

impl Running {
    /// Takes two atomic operations and a look at the clock, neither of which asks the kernel.
    pub(crate) fn start(histogram: Option<&Histogram>) -> Self {
        Self(histogram.map(|histogram| (Instant::now(), histogram.clone())))
    }

    pub(crate) fn stop(self) {
        if let Some((start, histogram)) = self.0 {
            histogram.observe(start.elapsed().as_secs_f64() * 1e6);
        }
    }
}
