//! Sources that stall, ignore ranges, panic or complain, stores that take nothing or little: readers
//! still get an answer, and neither memory, link nor log is wasted on them.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::{
    Retrying, Rig, Sample, check_all, eventually, finish, no_readahead, read, start,
};
use soci_fetch::{FetchConfig, ReadError};
use soci_oci::Digest;
use soci_registry::testing::{Fault, MemoryBlob};
use soci_registry::{BlobSource, ByteStream, Deadline, RegistryError};
use soci_store::LayerStoreConfig;
use soci_telemetry::JsonLog;
use soci_testkit::CapturedLog;
use soci_ztoc::SpanId;

#[test]
fn a_response_that_stalls_is_requested_again_a_bounded_number_of_times() {
    let sample = Sample::gzip(3, 100_000);
    let rig = Rig::new(no_readahead());
    let source = MemoryBlob::new(sample.blob.clone());
    source.fault(0, Fault::Hang);
    source.fault(1, Fault::Hang);
    let layer = rig.open(&sample, Retrying(source.clone()));
    let got = read(&layer, 0, 1000).unwrap();
    assert!(got == sample.tar[..1000]);
    assert_eq!(source.requests().len(), 3);

    source.fault_always(Some(Fault::Hang));
    let at = sample.tar.len() - 1000;
    let error = read(&layer, at as u64, 1000).unwrap_err();
    assert!(error.to_string().contains("refused"), "{error}");
    assert_eq!(source.requests().len(), 6);
}

/// A blob with a twist.
struct Odd {
    blob: MemoryBlob,
    ignores_ranges: bool,
    /// The first requests panic.
    panics: AtomicUsize,
    /// Each request counts as having been made again inside the client.
    retries: Option<AtomicU64>,
}

impl Odd {
    fn new(sample: &Sample) -> Self {
        Self {
            blob: MemoryBlob::new(sample.blob.clone()),
            ignores_ranges: false,
            panics: AtomicUsize::new(0),
            retries: None,
        }
    }
}

#[async_trait::async_trait]
impl BlobSource for Odd {
    fn size(&self) -> u64 {
        self.blob.size()
    }

    async fn stream_range(
        &self,
        range: Range<u64>,
        deadline: Deadline,
    ) -> Result<ByteStream, RegistryError> {
        let left = &self.panics;
        let panics = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        assert!(panics.is_err(), "on purpose");
        if let Some(retries) = &self.retries {
            retries.fetch_add(1, Ordering::Relaxed);
        }
        self.blob.stream_range(range, deadline).await
    }

    fn ignores_ranges(&self) -> bool {
        self.ignores_ranges
    }

    fn retry_count(&self) -> u64 {
        let retries = self.retries.as_ref();
        retries.map_or(0, |retries| retries.load(Ordering::Relaxed))
    }

    fn describe(&self) -> String {
        self.blob.describe()
    }
}

#[test]
fn a_source_that_ignores_ranges_gets_large_requests() {
    // More than 8 MiB compressed, which is what readers otherwise wait for in one request.
    let sample = Sample::gzip(200, 1_000_000);
    for ignores_ranges in [false, true] {
        let rig = Rig::new(no_readahead());
        let odd = Odd {
            ignores_ranges,
            ..Odd::new(&sample)
        };
        let asked = odd.blob.clone();
        let layer = rig.open(&sample, odd);
        let got = finish(&start(&layer, 0, sample.tar.len())).unwrap();
        assert!(got == sample.tar);
        let requests = asked.requests().len();
        assert_eq!(requests == 1, ignores_ranges, "{requests}");
    }
}

#[test]
fn a_panic_in_a_request_is_an_error_and_the_next_read_succeeds() {
    let sample = Sample::gzip(10, 100_000);
    let rig = Rig::new(no_readahead());
    let odd = Odd {
        panics: AtomicUsize::new(1),
        ..Odd::new(&sample)
    };
    let layer = rig.open(&sample, odd);
    let readers: Vec<_> = (0..5).map(|n| start(&layer, n, 10)).collect();
    let answers: Vec<_> = readers.iter().map(finish).collect();
    let abandoned = |answer: &Result<_, _>| matches!(answer, Err(ReadError::Abandoned));
    assert!(answers.iter().any(abandoned), "{answers:?}");
    check_all(&layer, &sample.tar, 50_000);
    eventually("idle", || {
        let stats = rig.fetcher.stats();
        stats.requests_in_flight == 0 && stats.memory_in_use == 0
    });
}

#[test]
fn retries_inside_the_client_lower_the_number_of_requests_at_once() {
    let sample = Sample::gzip(10, 100_000);
    let rig = Rig::new(no_readahead());
    let before = rig.fetcher.stats().request_limit;
    let odd = Odd {
        retries: Some(AtomicU64::new(0)),
        ..Odd::new(&sample)
    };
    let layer = rig.open(&sample, odd);
    read(&layer, 0, 10).unwrap();
    eventually("fewer", || rig.fetcher.stats().request_limit < before);
}

#[test]
fn spans_that_cannot_be_stored_leave_readers_the_memory_that_they_need() {
    let sample = Sample::gzip(30, 200_000);
    // Learns how large spans are.
    let rig = Rig::new(no_readahead());
    let layer = rig.open(&sample, MemoryBlob::new(sample.blob.clone()));
    let spans = layer.stored().spans().clone();
    let length = |range: Range<u64>| range.end - range.start;
    let largest = (0..spans.len()).map(|id| length(spans.span(SpanId(id)).uncompressed));
    let largest = largest.max().unwrap();
    for parts in [1, 2, 4, 5, 6, 8] {
        let config = FetchConfig {
            memory_budget: largest * parts,
            ..no_readahead()
        };
        let full = LayerStoreConfig {
            budget_bytes: Some(1),
            ..LayerStoreConfig::default()
        };
        let rig = Rig::at(Arc::new(tempfile::tempdir().unwrap()), config, full);
        let layer = rig.open(&sample, MemoryBlob::new(sample.blob.clone()));
        let readers: Vec<_> = (0..sample.tar.len())
            .step_by(50_000)
            .map(|at| (at, start(&layer, at as u64, 1)))
            .collect();
        for (at, answers) in readers {
            assert_eq!(
                finish(&answers).unwrap()[..],
                sample.tar[at..=at],
                "{parts}"
            );
        }
        check_all(&layer, &sample.tar, 100_000);
    }
}

#[test]
fn the_background_does_not_push_out_what_is_stored() {
    let sample = Sample::gzip(60, 100_000);
    let mut config = no_readahead();
    config.background.silence_period = Some(Duration::ZERO);
    config.background.fetch_period = Some(Duration::from_millis(1));
    let store = LayerStoreConfig {
        budget_bytes: Some(2_000_000),
        ..LayerStoreConfig::default()
    };
    let rig = Rig::paused(config, store);
    let _time = rig.enter();
    let layer = rig.open(&sample, MemoryBlob::new(sample.blob.clone()));
    layer.start_background(Digest::of(b"image"));
    let idle = || {
        let stats = rig.fetcher.stats();
        stats.requests_in_flight == 0 && stats.memory_in_use == 0
    };
    eventually("nearly full", || {
        rig.pass(Duration::from_millis(10));
        rig.store.usage().stored_bytes > 1_500_000
    });
    // Rounds enough for fetching all of it many times over.
    for _ in 0..20 {
        rig.pass(Duration::from_secs(10));
        eventually("idle", idle);
    }
    let spans = rig.fetcher.stats().background.spans;
    assert!(spans < u64::from(layer.stored().spans().len()), "{spans}");
    // Readers still get everything, and room is made for them.
    for at in (0..sample.tar.len()).step_by(100_000) {
        let len = 100_000.min(sample.tar.len() - at);
        let answers = start(&layer, at as u64, len);
        eventually("fetched", || {
            rig.pass(Duration::from_millis(1));
            idle()
        });
        assert!(finish(&answers).unwrap() == sample.tar[at..at + len]);
    }
    let last = SpanId(layer.stored().spans().len() - 1);
    eventually("stored", || layer.stored().has(last));
}

/// The body that a reader waits for may hold other spans before the one that is read, which wait
/// for memory too.
#[test]
fn readers_are_answered_while_more_is_wanted_than_memory_holds() {
    let sample = Sample::gzip(60, 100_000);
    let config = FetchConfig {
        memory_budget: 1_200_000,
        read_timeout: Duration::from_secs(3600),
        ..no_readahead()
    };
    let rig = Rig::new(config);
    let layer = rig.open(&sample, MemoryBlob::new(sample.blob.clone()));
    let spans = layer.stored().spans().len();
    for round in 0..20 {
        layer.prefetch(0..spans);
        let readers: Vec<_> = (0..20_u64)
            .map(|n| (n * 300_000 + round * 7919) % (sample.tar.len() as u64 - 10))
            .map(|at| (at, start(&layer, at, 10)))
            .collect();
        for (at, answers) in readers {
            let at = usize::try_from(at).unwrap();
            assert_eq!(finish(&answers).unwrap()[..], sample.tar[at..at + 10]);
        }
    }
}

#[test]
fn a_warning_about_a_request_names_layer_and_image() {
    let log = CapturedLog::through(JsonLog::new);
    let sample = Sample::gzip(3, 100_000);
    // Its requests run on this thread, as the log does.
    let rig = Rig::paused(no_readahead(), LayerStoreConfig::default());
    let _time = rig.enter();
    let source = MemoryBlob::new(sample.blob.clone());
    source.fault_always(Some(Fault::Fail(MemoryBlob::unreachable())));
    let layer = rig.open(&sample, source);
    // What starts the request may be about another layer.
    let answers = tracing::error_span!("prepare", snapshot = 7).in_scope(|| start(&layer, 0, 10));
    rig.pass(Duration::from_secs(1));
    finish(&answers).unwrap_err();
    let warnings = log.json("range request failed");
    let warning = warnings.first().unwrap();
    assert_eq!(warning["level"], "warning");
    assert_eq!(warning["layer"], sample.digest().to_string());
    assert_eq!(warning["image"], "memory");
    assert!(warning["spans"].is_string(), "{warning}");
    assert!(warning["snapshot"].is_null(), "{warning}");
}
