//! The metrics of a process, and their text for Prometheus.
//!
//! Rare events are counted as they happen ([`Meters::took`], [`Meters::count`]). What is
//! counted anyway, or changes all the time, is read when metrics are requested: [`Sample`].

use std::time::Duration;

use parking_lot::Mutex;
use prometheus::{
    CounterVec, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use crate::catalog::{self, Kind, Metric};
use crate::metrics::{
    MICROSECOND_BUCKETS, MILLISECOND_BUCKETS, SYNCHRONOUS_BYTES_SERVED, count, duration_ms,
    duration_us, image,
};

/// A metric cannot be made or written. A defect of ours.
#[derive(Debug, thiserror::Error)]
#[error("metrics: {0}; this is a defect of the snapshotter, please report it")]
pub struct MetersError(#[from] prometheus::Error);

/// A value that is read when metrics are scraped.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Which metric; one of the catalog's that is a counter or a gauge.
    pub metric: &'static Metric,
    /// The values of its labels.
    pub labels: Vec<String>,
    /// Its value now.
    pub value: f64,
}

impl Sample {
    /// A value of a metric without labels.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        reason = "the text format has floating point numbers only"
    )]
    pub fn of(metric: &'static Metric, value: u64) -> Self {
        Self {
            metric,
            labels: Vec::new(),
            value: value as f64,
        }
    }

    /// The same with the values of its labels.
    #[must_use]
    pub fn labelled<const N: usize>(mut self, labels: [&str; N]) -> Self {
        self.labels = labels.map(str::to_owned).into();
        self
    }
}

/// The metrics of this process.
pub struct Meters {
    registry: Registry,
    milliseconds: HistogramVec,
    microseconds: HistogramVec,
    counts: IntCounterVec,
    served: IntGaugeVec,
    image_operations: IntGaugeVec,
    sampled: Vec<(&'static Metric, Sampled)>,
    /// Samples are put in and written by one at a time.
    writing: Mutex<()>,
}

enum Sampled {
    Counter(CounterVec),
    Gauge(GaugeVec),
}

impl std::fmt::Debug for Meters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Meters").finish_non_exhaustive()
    }
}

impl Meters {
    /// All metrics of the catalog.
    ///
    /// # Errors
    /// Two have the same name, or a name is not one.
    pub fn new() -> Result<Self, MetersError> {
        let told = [
            &catalog::MILLISECONDS,
            &catalog::MICROSECONDS,
            &catalog::COUNTS,
            &catalog::SERVED,
            &catalog::IMAGE_OPERATIONS,
        ];
        let opts = |metric: &Metric| Opts::new(metric.name, metric.help);
        let histogram = |metric: &Metric, bounds: &[u32]| {
            let buckets = bounds.iter().copied().map(f64::from).collect();
            let opts = HistogramOpts::new(metric.name, metric.help).buckets(buckets);
            HistogramVec::new(opts, metric.labels)
        };
        let meters = Self {
            registry: Registry::new(),
            milliseconds: histogram(&catalog::MILLISECONDS, &MILLISECOND_BUCKETS)?,
            microseconds: histogram(&catalog::MICROSECONDS, &MICROSECOND_BUCKETS)?,
            counts: IntCounterVec::new(opts(&catalog::COUNTS), catalog::COUNTS.labels)?,
            served: IntGaugeVec::new(opts(&catalog::SERVED), catalog::SERVED.labels)?,
            image_operations: IntGaugeVec::new(
                opts(&catalog::IMAGE_OPERATIONS),
                catalog::IMAGE_OPERATIONS.labels,
            )?,
            sampled: catalog::ALL
                .iter()
                .filter(|metric| !told.contains(*metric))
                .map(|metric| {
                    let vec = match metric.kind {
                        Kind::Counter => {
                            Sampled::Counter(CounterVec::new(opts(metric), metric.labels)?)
                        }
                        Kind::Gauge | Kind::Histogram => {
                            Sampled::Gauge(GaugeVec::new(opts(metric), metric.labels)?)
                        }
                    };
                    Ok((*metric, vec))
                })
                .collect::<Result<_, prometheus::Error>>()?,
            writing: Mutex::default(),
        };
        let registry = &meters.registry;
        registry.register(Box::new(meters.milliseconds.clone()))?;
        registry.register(Box::new(meters.microseconds.clone()))?;
        registry.register(Box::new(meters.counts.clone()))?;
        registry.register(Box::new(meters.served.clone()))?;
        registry.register(Box::new(meters.image_operations.clone()))?;
        for (_, sampled) in &meters.sampled {
            match sampled {
                Sampled::Counter(vec) => registry.register(Box::new(vec.clone()))?,
                Sampled::Gauge(vec) => registry.register(Box::new(vec.clone()))?,
            }
        }
        Ok(meters)
    }

    /// An operation, one of [`duration_ms`], took this long.
    pub fn took(&self, operation: &str, layer: &str, time: Duration) {
        let milliseconds = time.as_secs_f64() * 1e3;
        self.milliseconds
            .with_label_values(&[operation, layer])
            .observe(milliseconds);
    }

    /// For an operation that is too frequent for looking its histogram up each time, one of
    /// [`duration_us`]: to be observed in microseconds.
    #[must_use]
    pub fn microseconds(&self, operation: &str, layer: &str) -> Histogram {
        self.microseconds.with_label_values(&[operation, layer])
    }

    /// This happened `more` times more; one of [`count`]. Nothing is shown of what never happened.
    pub fn count(&self, operation: &str, layer: &str, more: u64) {
        if more > 0 {
            self.counts
                .with_label_values(&[operation, layer])
                .inc_by(more);
        }
    }

    /// This happened so many times altogether; one of [`count`]. Shown also when it is none.
    pub fn count_to(&self, operation: &str, layer: &str, total: u64) {
        let counter = self.counts.with_label_values(&[operation, layer]);
        counter.inc_by(total.saturating_sub(counter.get()));
    }

    /// So many more bytes were read of a layer.
    pub fn served(&self, layer: &str, more: u64) {
        if more > 0 {
            self.served
                .with_label_values(&[SYNCHRONOUS_BYTES_SERVED, layer])
                .add(whole(more));
        }
    }

    /// The number of an image's operations, one of [`image`].
    pub fn image_operations(&self, operation: &str, image: &str, number: u64) {
        self.image_operations
            .with_label_values(&[operation, image])
            .set(whole(number));
    }

    /// Removes the series of a layer or an index that has no users.
    pub fn forget_layer(&self, layer: &str) {
        // An error means that there was nothing to forget.
        for operation in duration_ms::ALL {
            let _ = self.milliseconds.remove_label_values(&[operation, layer]);
        }
        for operation in duration_us::ALL {
            let _ = self.microseconds.remove_label_values(&[operation, layer]);
        }
        for operation in count::ALL {
            let _ = self.counts.remove_label_values(&[operation, layer]);
        }
        let _ = self
            .served
            .remove_label_values(&[SYNCHRONOUS_BYTES_SERVED, layer]);
    }

    /// Shows nothing more of an image.
    pub fn forget_image(&self, digest: &str) {
        for operation in image::ALL {
            let _ = self
                .image_operations
                .remove_label_values(&[operation, digest]);
        }
    }

    /// The text for Prometheus, with these samples and no earlier ones.
    ///
    /// # Errors
    /// A sample has other labels than its metric.
    pub fn text(&self, samples: &[Sample]) -> Result<String, MetersError> {
        let _alone = self.writing.lock();
        for (metric, sampled) in &self.sampled {
            let of_this = samples.iter().filter(|sample| sample.metric == *metric);
            match sampled {
                Sampled::Counter(vec) => {
                    vec.reset();
                    for sample in of_this {
                        vec.get_metric_with_label_values(&sample.labels)?
                            .inc_by(sample.value.max(0.0));
                    }
                }
                Sampled::Gauge(vec) => {
                    vec.reset();
                    for sample in of_this {
                        vec.get_metric_with_label_values(&sample.labels)?
                            .set(sample.value);
                    }
                }
            }
        }
        Ok(TextEncoder::new().encode_to_string(&self.registry.gather())?)
    }
}

fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_the_labels_and_bounds_of_v0_15_in_its_spelling() {
        let meters = Meters::new().unwrap();
        meters.took(duration_ms::MOUNT, "sha256:a", Duration::from_micros(3_500));
        meters
            .microseconds(duration_us::SYNCHRONOUS_READ, "sha256:a")
            .observe(1.5);
        meters.count(count::FUSE_MOUNT_FAILURE, "", 2);
        meters.count(count::SYNCHRONOUS_READ, "sha256:a", 0);
        meters.served("sha256:a", 7);
        let samples = [Sample::of(&catalog::LAYER_SIZE, 12).labelled(["sha256:a", "/m"])];
        let text = meters.text(&samples).unwrap();
        for line in [
            "# TYPE soci_fs_operation_duration_milliseconds histogram",
            r#"soci_fs_operation_duration_milliseconds_bucket{layer="sha256:a",operation_type="mount",le="2"} 0"#,
            r#"soci_fs_operation_duration_milliseconds_bucket{layer="sha256:a",operation_type="mount",le="4"} 1"#,
            r#"soci_fs_operation_duration_milliseconds_bucket{layer="sha256:a",operation_type="mount",le="+Inf"} 1"#,
            r#"soci_fs_operation_duration_milliseconds_sum{layer="sha256:a",operation_type="mount"} 3.5"#,
            r#"soci_fs_operation_duration_microseconds_bucket{layer="sha256:a",operation_type="synchronous_read",le="1024"} 1"#,
            r#"soci_fs_operation_count{layer="",operation_type="fuse_mount_failure_count"} 2"#,
            "# TYPE soci_fs_bytes_served gauge",
            r#"soci_fs_bytes_served{layer="sha256:a",operation_type="synchronous_bytes_served"} 7"#,
            "# TYPE soci_fs_layer_size_bytes counter",
            r#"soci_fs_layer_size_bytes{digest="sha256:a",mountpoint="/m"} 12"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        assert!(!text.contains("synchronous_read_count"), "{text}");
    }

    #[test]
    fn what_is_no_longer_used_is_no_longer_shown() {
        let meters = Meters::new().unwrap();
        meters.took(duration_ms::MOUNT, "sha256:a", Duration::from_secs(1));
        meters.count(count::RESOLVE_CACHE_MISS, "sha256:a", 1);
        meters.count(count::RESOLVE_CACHE_MISS, "sha256:b", 1);
        meters.image_operations(image::FILE_READ, "sha256:i", 1);
        let sample = Sample::of(&catalog::LAYER_SIZE, 12).labelled(["sha256:a", "/m"]);
        assert!(meters.text(&[sample]).unwrap().contains("sha256:a"));
        meters.forget_layer("sha256:a");
        meters.forget_image("sha256:i");
        let text = meters.text(&[]).unwrap();
        assert!(
            !text.contains("sha256:a") && !text.contains("sha256:i"),
            "{text}"
        );
        assert!(text.contains("sha256:b"), "{text}");
    }

    #[test]
    fn every_sampled_metric_can_be_written() {
        let meters = Meters::new().unwrap();
        let told = ["soci_fs_operation", "soci_fs_bytes", "soci_fs_image"];
        for metric in catalog::ALL {
            if told.iter().any(|start| metric.name.starts_with(start)) {
                continue;
            }
            let mut sample = Sample::of(metric, 5);
            sample.labels = metric.labels.iter().map(|_| "x".to_owned()).collect();
            let text = meters.text(&[sample]).unwrap();
            let kind = format!("# TYPE {} {}\n", metric.name, metric.kind.word());
            assert!(text.contains(&kind), "{kind}\n{text}");
        }
    }
}
