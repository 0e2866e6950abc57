//! Adds the counts of mounts and layers to the metrics when these are read. Readers of files count
//! in plain atomics, which costs next to nothing.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use soci_layer::LayerRefusal;
use soci_layerfs::{CounterSnapshot, Timer, Timers};
use soci_oci::Digest;
use soci_telemetry::Meters;
use soci_telemetry::metrics::{count, duration_ms, duration_us};
use soci_ztoc::ZtocError;
use tokio::time::Instant;

use crate::open_layer::OpenLayer;

/// Period in which failing file systems are counted once, as in v0.15.
const FAILURE_PERIOD: Duration = Duration::from_secs(300);

/// The metrics of lazy layers.
pub(crate) struct Metering {
    pub(crate) meters: Arc<Meters>,
    /// Start of the last period with a failure.
    failing: Mutex<Option<Instant>>,
}

impl Metering {
    pub(crate) const fn new(meters: Arc<Meters>) -> Self {
        Self {
            meters,
            failing: Mutex::new(None),
        }
    }

    /// Returns the histograms in which the mounts of a layer measure.
    pub(crate) fn timers(&self, layer: &Digest) -> Timers {
        let layer = layer.to_string();
        let timer = |operation| {
            let histogram = self.meters.microseconds(operation, &layer);
            Some(Timer::new(move |duration| {
                histogram.observe(duration.as_secs_f64() * 1e6);
            }))
        };
        Timers {
            read: timer(duration_us::SYNCHRONOUS_READ),
            readdir: timer(duration_us::NODE_READDIR),
        }
    }

    /// Adds what a mount of the layer has counted since the last call.
    pub(crate) fn mount(
        &self,
        layer: &Digest,
        now: CounterSnapshot,
        counted: &mut CounterSnapshot,
    ) {
        let layer = layer.to_string();
        let before = std::mem::replace(counted, now);
        for (operation, now, before) in [
            (count::SYNCHRONOUS_READ, now.read, before.read),
            (
                count::SYNCHRONOUS_READ_REMOTE_REGISTRY_FETCH,
                now.read_waited,
                before.read_waited,
            ),
        ] {
            self.meters
                .count(operation, &layer, now.saturating_sub(before));
        }
        self.meters
            .served(&layer, now.bytes_served.saturating_sub(before.bytes_served));
        let mut failures = 0_u64;
        for (operation, now, before) in [
            (
                count::FUSE_NODE_LOOKUP_FAILURE,
                now.lookup_failures,
                before.lookup_failures,
            ),
            (
                count::FUSE_NODE_GETATTR_FAILURE,
                now.getattr_failures,
                before.getattr_failures,
            ),
            (
                count::FUSE_NODE_READDIR_FAILURE,
                now.readdir_failures,
                before.readdir_failures,
            ),
            (
                count::FUSE_FILE_READ_FAILURE,
                now.read_failures,
                before.read_failures,
            ),
            (
                count::FUSE_UNKNOWN_OPERATION_FAILURE,
                now.other_failures,
                before.other_failures,
            ),
        ] {
            let more = now.saturating_sub(before);
            failures = failures.saturating_add(more);
            self.meters.count(operation, &layer, more);
        }
        if failures > 0 {
            self.failing();
        }
    }

    /// Counts a layer that was not mounted because its zTOC is damaged where v0.15 counts it: that mounts
    /// such a layer, and reading its files fails.
    pub(crate) fn refused(&self, layer: &Digest, refusal: &LayerRefusal) {
        let damaged = soci_errors::causes(refusal)
            .any(|cause| matches!(cause.downcast_ref(), Some(ZtocError::Invalid(_))));
        if damaged {
            self.meters
                .count(count::FUSE_FILE_READ_FAILURE, &layer.to_string(), 1);
            self.failing();
        }
    }

    fn failing(&self) {
        let mut began = self.failing.lock();
        if began.is_none_or(|began| began.elapsed() >= FAILURE_PERIOD) {
            *began = Some(Instant::now());
            self.meters.count(count::FUSE_FAILURE_STATE, "", 1);
        }
    }

    /// Adds what the background fetcher has counted for a layer since the last call.
    pub(crate) fn layer(&self, digest: &Digest, layer: &OpenLayer) {
        let digest = digest.to_string();
        let mut counted = layer.counted.lock();
        let now = layer.data.background();
        let before = std::mem::replace(&mut *counted, now);
        self.meters.count(
            count::BACKGROUND_SPAN_FETCH,
            &digest,
            now.spans.saturating_sub(before.spans),
        );
        self.meters.count(
            count::BACKGROUND_SPAN_FETCH_FAILURE,
            &digest,
            now.failures.saturating_sub(before.failures),
        );
        if let Some(time) = layer.data.take_fill_time() {
            self.meters
                .took(duration_ms::BACKGROUND_FETCH, &digest, time);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_added_once_and_failures_make_one_period() {
        let metering = Metering::new(Arc::new(Meters::new().unwrap()));
        let (layer, mut counted) = (Digest::of(b"l"), CounterSnapshot::default());
        let mut now = CounterSnapshot {
            read: 5,
            bytes_served: 100,
            read_failures: 1,
            ..CounterSnapshot::default()
        };
        metering.mount(&layer, now, &mut counted);
        metering.mount(&layer, now, &mut counted);
        now.read_failures = 2;
        metering.mount(&layer, now, &mut counted);
        let text = metering.meters.text(&[]).unwrap();
        for (labels, value) in [
            (
                format!("{layer}\",operation_type=\"synchronous_read_count"),
                5,
            ),
            (
                format!("{layer}\",operation_type=\"synchronous_bytes_served"),
                100,
            ),
            (
                format!("{layer}\",operation_type=\"fuse_file_read_failure_count"),
                2,
            ),
            ("\",operation_type=\"fuse_failure_state".to_owned(), 1),
        ] {
            let line = format!("{{layer=\"{labels}\"}} {value}");
            assert!(text.contains(&line), "{line}\n{text}");
        }
    }
}
