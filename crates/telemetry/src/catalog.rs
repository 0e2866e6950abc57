//! All metrics: v0.15's, whose names stand in [`metrics`](crate::metrics), and ours.
//! `docs/metrics.md` is the same list for operators; a test keeps the two in step.

use crate::metrics::{
    BYTES_SERVED, DIGEST, IMAGE, IMAGE_OPERATION_COUNT, LAYER, LAYER_FETCHED_SIZE_BYTES,
    LAYER_SIZE_BYTES, MOUNTPOINT, OPERATION_COUNT, OPERATION_DURATION_MICROSECONDS,
    OPERATION_DURATION_MILLISECONDS, OPERATION_TYPE,
};

/// The type of a metric in the text format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only ever grows, but for restarts.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Observations by size.
    Histogram,
}

impl Kind {
    /// The word in the text format.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One metric. Names, labels and units are stable.
#[derive(Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// Its labels, in the order in which their values are given.
    pub labels: &'static [&'static str],
    /// What one is: `bytes`, `seconds`, `spans`, …
    pub unit: &'static str,
    /// One sentence.
    pub help: &'static str,
}

macro_rules! catalog {
    ($($name:ident = $text:expr, $kind:ident, [$($label:expr),*], $unit:literal, $help:literal;)+) => {
        $(
            #[doc = $help]
            pub static $name: Metric = Metric {
                name: $text,
                kind: Kind::$kind,
                labels: &[$($label),*],
                unit: $unit,
                help: $help,
            };
        )+
        /// Every metric of the daemon.
        pub static ALL: &[&Metric] = &[$(&$name),+];
    };
}

/// Label: what the bytes were fetched for: `demand`, `readahead`, `profile` or `background`.
pub const PRIORITY: &str = "priority";
/// Label: why a layer is not lazy, one of the codes in `docs/troubleshooting.md`.
pub const REASON: &str = "reason";
/// Label: how the pull of a layer ended: `pulled` or `failed`.
pub const RESULT: &str = "result";
/// Label: how a layer is provided: `lazy`, `local` or `deferred`.
pub const STATE: &str = "state";

catalog! {
    MILLISECONDS = OPERATION_DURATION_MILLISECONDS, Histogram, [OPERATION_TYPE, LAYER], "milliseconds",
        "How long operations took.";
    MICROSECONDS = OPERATION_DURATION_MICROSECONDS, Histogram, [OPERATION_TYPE, LAYER], "microseconds",
        "How long reads and directory listings took.";
    COUNTS = OPERATION_COUNT, Counter, [OPERATION_TYPE, LAYER], "operations",
        "Operations and failures.";
    SERVED = BYTES_SERVED, Gauge, [OPERATION_TYPE, LAYER], "bytes",
        "Content of files given to readers.";
    IMAGE_OPERATIONS = IMAGE_OPERATION_COUNT, Gauge, [OPERATION_TYPE, IMAGE], "operations",
        "FUSE operations of an image until fuse_metrics_emit_wait_duration_sec after its first mount; and the background queue.";
    LAYER_FETCHED = LAYER_FETCHED_SIZE_BYTES, Counter, [DIGEST, MOUNTPOINT], "bytes",
        "Compressed bytes of a mounted layer that are stored.";
    LAYER_SIZE = LAYER_SIZE_BYTES, Counter, [DIGEST, MOUNTPOINT], "bytes",
        "Compressed bytes of a mounted layer.";
    STORE_SIZE = "soci_layer_store_size_bytes", Gauge, [], "bytes",
        "Uncompressed layer data in the layer store.";
    STORE_LIMIT = "soci_layer_store_limit_bytes", Gauge, [], "bytes",
        "The limit of layers on disk, the lower of max_size_bytes and max_size_percent; 0 without one.";
    STORE_UNPACKED = "soci_layer_store_unpacked_bytes", Gauge, [], "bytes",
        "Bytes of unpacked layers, which count against the limit of layers on disk.";
    STORE_EVICTED = "soci_layer_store_evicted_bytes_total", Counter, [], "bytes",
        "Uncompressed layer data that was evicted from the layer store.";
    STORE_SPANS = "soci_layer_store_spans", Gauge, [], "spans",
        "Spans in the layer store.";
    STORE_LAYERS = "soci_layer_store_layers", Gauge, [], "layers",
        "Layers that are open in the layer store.";
    QUEUE_SPANS = "soci_fetch_queue_spans", Gauge, [], "spans",
        "Spans that wait to be requested.";
    IN_FLIGHT = "soci_fetch_requests_in_flight", Gauge, [], "requests",
        "Ranged requests to registries that are under way.";
    FETCH_MEMORY = "soci_fetch_memory_bytes", Gauge, [], "bytes",
        "Part of memory_budget_bytes that is in use.";
    FETCHED_BYTES = "soci_fetch_bytes_total", Counter, [PRIORITY], "bytes",
        "Compressed bytes of layers that registries sent.";
    FETCHED_SPANS = "soci_fetch_spans_total", Counter, [PRIORITY], "spans",
        "Spans fetched, checked and inflated.";
    FETCH_REQUESTS = "soci_fetch_requests_total", Counter, [PRIORITY], "requests",
        "Ranged requests made for spans.";
    MISMATCHES = "soci_fetch_verification_failures_total", Counter, [], "spans",
        "Times that the bytes of a span did not match its digest.";
    FAILED_SPANS = "soci_fetch_failed_spans_total", Counter, [], "spans",
        "Spans that could not be had in spite of all attempts.";
    STORE_FAILURES = "soci_layer_store_failures_total", Counter, [], "spans",
        "Spans that were served but could not be stored.";
    ORIGINS_FAILING = "soci_fetch_origins_failing", Gauge, [], "registries",
        "Registries that failed several times in a row and are only probed.";
    PROFILES_RECORDED = "soci_profiles_recorded_total", Counter, [], "starts",
        "Starts whose reads were recorded.";
    PROFILES_PLAYED = "soci_profiles_played_total", Counter, [], "starts",
        "Starts for which a profile was played.";
    PROFILES_STOPPED = "soci_profiles_stopped_total", Counter, [], "starts",
        "Starts whose profile was stopped because too little of it was used.";
    PROFILES_PLAYING = "soci_profiles_playing", Gauge, [], "starts",
        "Starts for which a profile is playing.";
    PROFILE_BYTES = "soci_profile_bytes_total", Counter, [], "bytes",
        "Compressed bytes that profiles fetched.";
    PROFILE_USED_BYTES = "soci_profile_used_bytes_total", Counter, [], "bytes",
        "Part of soci_profile_bytes_total that was read; the rest is waste.";
    EAGER_IMAGES = "soci_eager_images", Gauge, [], "images",
        "Images that are being pulled eagerly.";
    EAGER_BYTES = "soci_eager_bytes_total", Counter, [], "bytes",
        "Compressed bytes that have arrived for eager pulls.";
    EAGER_REQUESTS = "soci_eager_requests_total", Counter, [], "requests",
        "Ranged requests (chunks) that were made for eager pulls.";
    EAGER_UNPACKED = "soci_eager_unpacked_bytes_total", Counter, [], "bytes",
        "Uncompressed bytes that eager pulls have unpacked.";
    EAGER_UNPACK_TIME = "soci_eager_unpack_milliseconds_total", Counter, [], "milliseconds",
        "Time for which layers were unpacked, from their turn to the last file on disk; layers that are unpacked together count each.";
    EAGER_LAYERS = "soci_eager_layers_total", Counter, [RESULT], "layers",
        "Layers whose eager pull has ended.";
    EAGER_UNPACKING = "soci_eager_unpacking_layers", Gauge, [], "layers",
        "Layers that are being unpacked.";
    EAGER_UNPACKS_WAITING = "soci_eager_queue_layers", Gauge, [], "layers",
        "Layers that wait for their turn to be unpacked.";
    EAGER_REQUESTS_WAITING = "soci_eager_queue_requests", Gauge, [], "requests",
        "Ranged requests that wait for others to end, or for memory.";
    EAGER_MEMORY = "soci_eager_memory_bytes", Gauge, [], "bytes",
        "Memory of eager pulls that is in use.";
    NOT_LAZY = "soci_layers_not_lazy_total", Counter, [REASON], "layers",
        "Prepares of layers that were not mounted lazily.";
    SNAPSHOT_LAYERS = "soci_snapshot_layers", Gauge, [STATE], "snapshots",
        "Snapshots that are image layers.";
    BROKEN_LAYERS = "soci_snapshot_broken_layers", Gauge, [], "snapshots",
        "Lazy layers that cannot be served at present.";
    FORGED_LAYERS = "soci_snapshot_forged_layers", Gauge, [], "mounts",
        "Mounted layers that were verified and are not what their digests say.";
    UNVERIFIED_LAYERS = "soci_snapshot_unverified_layers", Gauge, [], "mounts",
        "Mounted layers that have not been verified as a whole yet.";
    FUSE_WAITING = "soci_fuse_waiting_requests", Gauge, [], "requests",
        "FUSE requests that wait for an answer: reads of what is not stored.";
    FUSE_UNRECORDED = "soci_fuse_unrecorded_requests_total", Counter, [], "requests",
        "Requests that waited without an entry in the journal, which was full, on a kernel that cannot resend them.";
    LOG_DROPPED = "soci_log_dropped_lines_total", Counter, [], "lines",
        "Log lines that were dropped because stderr was not read.";
    BUILD = "soci_build_info", Gauge, ["version", "revision"], "1",
        "Always 1; says which program runs.";
    CPU = "process_cpu_seconds_total", Counter, [], "seconds",
        "User and system time of the daemon.";
    RESIDENT = "process_resident_memory_bytes", Gauge, [], "bytes",
        "Resident memory of the daemon.";
    VIRTUAL = "process_virtual_memory_bytes", Gauge, [], "bytes",
        "Address space of the daemon.";
    OPEN_FDS = "process_open_fds", Gauge, [], "descriptors",
        "Open file descriptors of the daemon.";
    MAX_FDS = "process_max_fds", Gauge, [], "descriptors",
        "The most descriptors that the daemon may have.";
    THREADS = "process_threads", Gauge, [], "threads",
        "Threads of the daemon.";
    STARTED = "process_start_time_seconds", Gauge, [], "seconds",
        "When the daemon started, since 1970.";
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rows of the table: name, type, labels, unit.
    fn documented() -> Vec<[String; 4]> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md");
        let text = std::fs::read_to_string(path).unwrap();
        text.lines()
            .skip_while(|line| !line.starts_with("| name | type |"))
            .skip(2)
            .take_while(|line| line.starts_with('|'))
            .map(|line| {
                let mut cells = line
                    .split('|')
                    .skip(1)
                    .map(|cell| cell.replace('`', "").trim().to_owned());
                std::array::from_fn(|_| cells.next().unwrap())
            })
            .collect()
    }

    #[test]
    fn the_page_for_operators_lists_every_metric_with_type_labels_and_unit() {
        let constants: Vec<[String; 4]> = ALL
            .iter()
            .map(|metric| {
                [
                    metric.name.to_owned(),
                    metric.kind.word().to_owned(),
                    metric.labels.join(", "),
                    metric.unit.to_owned(),
                ]
            })
            .collect();
        assert_eq!(documented(), constants);
    }

    #[test]
    fn the_page_for_operators_names_every_operation_type() {
        use crate::metrics::{count, duration_ms, duration_us, image};
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md");
        let text = std::fs::read_to_string(path).unwrap();
        for operation in [duration_ms::ALL, duration_us::ALL, count::ALL, image::ALL].concat() {
            assert!(text.contains(&format!("`{operation}`")), "{operation}");
        }
    }
}
