//! What the service counts, as Prometheus reads it.

use std::time::Duration;

use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::{Counts, Finish};

/// The metrics of an index builder.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    events: IntCounterVec,
    jobs: IntGaugeVec,
    attempts: IntCounterVec,
    bytes: IntCounter,
    seconds: Histogram,
}

impl Metrics {
    /// Creates them, all zero.
    ///
    /// # Errors
    /// Two have the same name, which is a defect.
    pub fn new() -> Result<Self, prometheus::Error> {
        let metrics = Self {
            registry: Registry::new(),
            events: IntCounterVec::new(
                Opts::new(
                    "soci_index_builder_pushes_total",
                    "Pushes that events reported, by what was done with them: queued, duplicate, ignored, \
                     malformed, forged, failed",
                ),
                &["result"],
            )?,
            jobs: IntGaugeVec::new(
                Opts::new("soci_index_builder_jobs", "Jobs in the queue by state"),
                &["state"],
            )?,
            attempts: IntCounterVec::new(
                Opts::new(
                    "soci_index_builder_attempts_total",
                    "Attempts to index an image that have ended, by result: done, skipped, retry, dead, \
                     interrupted",
                ),
                &["result"],
            )?,
            bytes: IntCounter::new(
                "soci_index_builder_layer_bytes_total",
                "Bytes of layers that were read for images that are indexed",
            )?,
            seconds: Histogram::with_opts(
                HistogramOpts::new(
                    "soci_index_builder_attempt_seconds",
                    "Time of attempts to index an image",
                )
                .buckets(vec![
                    0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 180.0, 600.0, 1800.0, 3600.0,
                ]),
            )?,
        };
        let registry = &metrics.registry;
        registry.register(Box::new(metrics.events.clone()))?;
        registry.register(Box::new(metrics.jobs.clone()))?;
        registry.register(Box::new(metrics.attempts.clone()))?;
        registry.register(Box::new(metrics.bytes.clone()))?;
        registry.register(Box::new(metrics.seconds.clone()))?;
        Ok(metrics)
    }

    /// Counts pushes of an event.
    pub(crate) fn pushes(&self, result: &str, number: usize) {
        self.events
            .with_label_values(&[result])
            .inc_by(number as u64);
    }

    /// Counts the end of an attempt.
    pub(crate) fn attempt(&self, finish: &Finish, time: Duration) {
        let result = match finish {
            Finish::Done(outcome) => {
                self.bytes.inc_by(outcome.bytes);
                "done"
            }
            Finish::Skipped(_) => "skipped",
            Finish::Retry { .. } => "retry",
            Finish::Dead(_) => "dead",
            Finish::Release => "interrupted",
        };
        self.attempts.with_label_values(&[result]).inc();
        self.seconds.observe(time.as_secs_f64());
    }

    /// Returns all metrics as text.
    pub(super) fn text(&self, counts: &Counts) -> Result<String, prometheus::Error> {
        for (state, count) in counts.by_state() {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.jobs.with_label_values(&[state]).set(count);
        }
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}
