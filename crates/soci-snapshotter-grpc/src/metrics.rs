//! `/metrics`: the counts of the subsystems, collected for each scrape.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use soci_eager::EagerLayers;
use soci_fetch::{PriorityStats, SpanFetcher};
use soci_fuse::Journal;
use soci_lazy::LazyLayers;
use soci_snapshotter::{Snapshotter, SnapshotterError};
use soci_store::LayerStore;
use soci_telemetry::catalog;
use soci_telemetry::metrics::{count, image};
use soci_telemetry::{Meters, MetersError, Sample};
use soci_unpack::Pipeline;
use tokio::sync::Mutex;

use crate::args::{REVISION, VERSION};
use crate::process_facts::ProcessFacts;

/// The media type of Prometheus' text format.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The subsystems that are counted.
pub(crate) struct Metrics {
    pub(crate) meters: Arc<Meters>,
    pub(crate) snapshotter: Arc<Snapshotter>,
    pub(crate) lazy: Arc<LazyLayers>,
    pub(crate) eager: Arc<EagerLayers>,
    pub(crate) pipeline: Arc<Pipeline>,
    pub(crate) fetcher: Arc<SpanFetcher>,
    pub(crate) store: LayerStore,
    pub(crate) journal: Arc<Journal>,
    /// Held while a scrape collects counts: one at a time.
    pub(crate) scraping: Mutex<()>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum MetricsError {
    #[error("cannot count the snapshots")]
    Snapshots(#[from] SnapshotterError),
    #[error(transparent)]
    Meters(#[from] MetersError),
}

/// Serves `/metrics`.
pub(crate) fn router(metrics: Metrics) -> Router {
    Router::new()
        .route("/metrics", get(answer))
        .with_state(Arc::new(metrics))
}

async fn answer(State(metrics): State<Arc<Metrics>>) -> Response {
    match metrics.text().await {
        Ok(text) => ([(header::CONTENT_TYPE, TEXT)], text).into_response(),
        Err(error) => {
            let error = soci_errors::chain(&error);
            tracing::warn!(error, "cannot collect metrics");
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response()
        }
    }
}

impl Metrics {
    async fn text(&self) -> Result<String, MetricsError> {
        soci_faults::hoards("metrics-memory");
        let _one_at_a_time = self.scraping.lock().await;
        self.lazy.update_metrics();
        let mut samples = self.mounts();
        samples.extend(self.snapshots().await?);
        samples.extend(self.fetching());
        samples.extend(self.requests());
        samples.extend(self.pulls());
        // An error means that the daemon ends.
        samples.extend(soci_task::run(process).await.unwrap_or_default());
        Ok(self.meters.text(&samples)?)
    }

    fn mounts(&self) -> Vec<Sample> {
        let mounts = self.lazy.mounts();
        let of_mount = |mount: &soci_lazy::MountReport| {
            let (layer, path) = (
                mount.layer.to_string(),
                mount.mountpoint.display().to_string(),
            );
            let of = |metric, value| Sample::of(metric, value).labelled([&layer, &path]);
            [
                of(&catalog::LAYER_FETCHED, mount.fetched),
                of(&catalog::LAYER_SIZE, mount.size),
            ]
        };
        let aborted = mounts.iter().filter(|mount| !mount.is_served).count() as u64;
        let broken = self.snapshotter.broken_layers().saturating_add(aborted);
        let mut samples: Vec<_> = mounts.iter().flat_map(of_mount).collect();
        samples.push(Sample::of(&catalog::BROKEN_LAYERS, broken));
        let forged = mounts.iter().filter(|mount| mount.forged.is_some());
        samples.push(Sample::of(&catalog::FORGED_LAYERS, forged.count() as u64));
        let unverified = mounts.iter().filter(|mount| !mount.verified);
        samples.push(Sample::of(
            &catalog::UNVERIFIED_LAYERS,
            unverified.count() as u64,
        ));
        samples
    }

    async fn snapshots(&self) -> Result<Vec<Sample>, MetricsError> {
        let counts = self.snapshotter.layer_counts().await?;
        let mut samples: Vec<_> = [
            ("lazy", counts.lazy),
            ("local", counts.local),
            ("deferred", counts.deferred),
        ]
        .into_iter()
        .map(|(state, number)| Sample::of(&catalog::SNAPSHOT_LAYERS, number).labelled([state]))
        .collect();
        for (reason, number) in self.snapshotter.refusals() {
            samples.push(Sample::of(&catalog::NOT_LAZY, number).labelled([reason]));
        }
        Ok(samples)
    }

    fn requests(&self) -> [Sample; 2] {
        let waiting = self.journal.in_flight() as u64;
        [
            Sample::of(&catalog::FUSE_WAITING, waiting),
            Sample::of(&catalog::FUSE_UNRECORDED, self.journal.unrecorded()),
        ]
    }

    fn pulls(&self) -> [Sample; 11] {
        let totals = self.eager.totals();
        let usage = self.pipeline.usage();
        let layers = |result, number| Sample::of(&catalog::EAGER_LAYERS, number).labelled([result]);
        [
            Sample::of(&catalog::EAGER_IMAGES, totals.images_running),
            Sample::of(&catalog::EAGER_BYTES, totals.downloaded),
            Sample::of(&catalog::EAGER_REQUESTS, totals.requests),
            Sample::of(&catalog::EAGER_UNPACKED, totals.unpacked),
            Sample::of(&catalog::EAGER_UNPACK_TIME, totals.unpack_milliseconds),
            layers("pulled", totals.layers),
            layers("failed", totals.layers_failed),
            Sample::of(&catalog::EAGER_UNPACKING, usage.unpacking),
            Sample::of(&catalog::EAGER_UNPACKS_WAITING, usage.unpacks_waiting),
            Sample::of(&catalog::EAGER_REQUESTS_WAITING, usage.requests_waiting),
            Sample::of(&catalog::EAGER_MEMORY, usage.memory),
        ]
    }

    fn fetching(&self) -> Vec<Sample> {
        let stats = self.fetcher.stats();
        let usage = self.store.usage();
        let profiles = self.lazy.profile_counts();
        self.meters.count_to(
            count::BACKGROUND_FETCH_WORK_QUEUE_EVICTED,
            "",
            stats.background_dropped,
        );
        self.meters.image_operations(
            image::BACKGROUND_FETCH_WORK_QUEUE_SIZE,
            "",
            stats.background_layers,
        );
        let by_priority = [
            ("demand", &stats.demand),
            ("readahead", &stats.readahead),
            ("profile", &stats.profile),
            ("background", &stats.background),
        ];
        let mut samples: Vec<_> = by_priority.iter().flat_map(of_priority).collect();
        samples.extend([
            Sample::of(&catalog::STORE_SIZE, usage.stored_bytes),
            Sample::of(
                &catalog::STORE_LIMIT,
                usage.budget_bytes.unwrap_or_default(),
            ),
            Sample::of(&catalog::STORE_UNPACKED, usage.elsewhere_bytes),
            Sample::of(&catalog::STORE_EVICTED, usage.evicted_bytes),
            Sample::of(&catalog::STORE_SPANS, self.store.stored_spans()),
            Sample::of(&catalog::STORE_LAYERS, usage.open_layers as u64),
            Sample::of(&catalog::QUEUE_SPANS, stats.queued_spans),
            Sample::of(&catalog::IN_FLIGHT, stats.requests_in_flight),
            Sample::of(&catalog::FETCH_MEMORY, stats.memory_in_use),
            Sample::of(&catalog::MISMATCHES, stats.verification_failures),
            Sample::of(&catalog::FAILED_SPANS, stats.spans_failed),
            Sample::of(&catalog::STORE_FAILURES, stats.store_failures),
            Sample::of(&catalog::ORIGINS_FAILING, stats.origins_failing),
            Sample::of(&catalog::PROFILES_RECORDED, profiles.recorded),
            Sample::of(&catalog::PROFILES_PLAYED, profiles.played),
            Sample::of(&catalog::PROFILES_STOPPED, profiles.stopped),
            Sample::of(&catalog::PROFILES_PLAYING, profiles.playing),
            Sample::of(&catalog::PROFILE_BYTES, profiles.bytes),
            Sample::of(&catalog::PROFILE_USED_BYTES, profiles.used_bytes),
        ]);
        samples
    }
}

fn of_priority((priority, stats): &(&str, &PriorityStats)) -> [Sample; 3] {
    [
        (&catalog::FETCHED_BYTES, stats.bytes),
        (&catalog::FETCHED_SPANS, stats.spans),
        (&catalog::FETCH_REQUESTS, stats.requests),
    ]
    .map(|(metric, number)| Sample::of(metric, number).labelled([priority]))
}

/// The figures of this process. Blocks on `/proc`.
fn process() -> Vec<Sample> {
    let facts = ProcessFacts::now();
    let seconds = |metric, value| Sample {
        metric,
        labels: Vec::new(),
        value,
    };
    vec![
        Sample::of(&catalog::LOG_DROPPED, soci_telemetry::dropped_lines()),
        Sample::of(&catalog::BUILD, 1).labelled([VERSION, REVISION]),
        seconds(&catalog::CPU, facts.cpu_seconds),
        Sample::of(&catalog::RESIDENT, facts.resident_bytes),
        Sample::of(&catalog::VIRTUAL, facts.virtual_bytes),
        Sample::of(&catalog::OPEN_FDS, facts.open_fds),
        Sample::of(&catalog::MAX_FDS, facts.max_fds),
        Sample::of(&catalog::THREADS, facts.threads),
        seconds(&catalog::STARTED, facts.start_seconds),
    ]
}
