//! Whatever the source, the disk or the daemon does: readers get the truth or an error, once, and
//! later readers get another try.

use std::sync::Arc;
use std::time::Duration;

use crate::support::{
    Retrying, Rig, Sample, check_all, eventually, finish, no_readahead, quick, read, start,
};
use soci_fetch::{FetchConfig, LayerData as _, LazyLayer, ReadError};
use soci_oci::Digest;
use soci_registry::testing::{Fault, MemoryBlob};
use soci_store::LayerStoreConfig;
use soci_ztoc::SpanId;
use tokio::sync::Semaphore;

#[test]
fn a_truncated_or_reset_body_is_requested_again_and_never_served_short() {
    let sample = Sample::gzip(30, 100_000);
    for after in [0, 1, 1000, 60_000, 100_000] {
        let rig = Rig::new(quick());
        let source = MemoryBlob::new(sample.blob.clone()).with_piece_size(5000);
        source.fault(0, Fault::Truncate(after));
        source.fault(2, Fault::Truncate(after));
        source.fault(4, Fault::Fail(MemoryBlob::unreachable()));
        let layer = rig.open(&sample, Retrying(source));
        check_all(&layer, &sample.tar, 131_072);
    }
}

#[test]
fn a_body_that_breaks_after_some_headway_is_resumed_where_it_ended() {
    let sample = Sample::gzip(30, 100_000);
    for after in [65_536, 100_001, 400_000] {
        let rig = Rig::new(no_readahead());
        let source = MemoryBlob::new(sample.blob.clone()).with_piece_size(5000);
        source.fault(0, Fault::Truncate(after));
        source.fault(1, Fault::Truncate(after));
        let layer = rig.open(&sample, source.clone());
        let got = read(&layer, 0, sample.tar.len()).unwrap();
        assert!(got == sample.tar);
        let requests = source.requests();
        let end = requests[0].end;
        assert_eq!(requests[1], requests[0].start + after..end);
        assert_eq!(requests[2], requests[1].start + after..end);
    }
}

#[test]
fn a_corrupt_byte_is_never_served_and_its_span_alone_is_fetched_again() {
    let sample = Sample::gzip(30, 100_000);
    let rig = Rig::new(no_readahead());
    let source = MemoryBlob::new(sample.blob.clone());
    let layer = rig.open(&sample, source.clone());
    let span = layer.stored().spans().span(SpanId(4));
    source.fault(0, Fault::Corrupt(span.compressed.start + 100));
    let got = read(&layer, 0, sample.tar.len()).unwrap();
    assert!(got == sample.tar);
    let stats = rig.fetcher.stats();
    assert_eq!(stats.verification_failures, 1);
    assert_eq!(source.requests()[1..], [span.compressed]);
}

#[test]
fn bytes_that_stay_corrupt_are_an_error_until_they_are_right() {
    let sample = Sample::gzip(10, 100_000);
    let rig = Rig::new(FetchConfig {
        max_span_verification_retries: 3,
        ..no_readahead()
    });
    let source = MemoryBlob::new(sample.blob.clone());
    let layer = rig.open(&sample, source.clone());
    let span = layer.stored().spans().span(SpanId(2));
    source.fault_always(Some(Fault::Corrupt(span.compressed.start + 100)));
    let error = read(&layer, span.uncompressed.start, 10).unwrap_err();
    assert!(
        matches!(error, ReadError::Verification { span: 2, .. }),
        "{error}"
    );
    assert_eq!(source.requests().len(), 4);
    assert!(layer.status().error.unwrap().detail.contains("digest"));
    assert!(!layer.stored().has(SpanId(2)));
    // Other spans are not affected, and the same one gets another try.
    let other = layer.stored().spans().span(SpanId(5)).uncompressed;
    read(&layer, other.start, 10).unwrap();
    source.fault_always(None);
    check_all(&layer, &sample.tar, 50_000);
    assert_eq!(layer.status().error, None);
}

#[test]
fn a_source_that_fails_gets_a_bounded_number_of_requests() {
    let sample = Sample::gzip(30, 100_000);
    let rig = Rig::new(no_readahead());
    let source = MemoryBlob::new(sample.blob.clone());
    source.fault_always(Some(Fault::Fail(MemoryBlob::status(404))));
    let layer = rig.open(&sample, Retrying(source.clone()));
    let error = read(&layer, 0, 2_000_000).unwrap_err();
    assert!(error.to_string().contains("404"), "{error}");
    assert_eq!(source.requests().len(), 1);
    source.fault_always(Some(Fault::Fail(MemoryBlob::unreachable())));
    read(&layer, 0, 2_000_000).unwrap_err();
    assert_eq!(source.requests().len(), 4, "{:?}", source.requests());
    source.fault_always(None);
    check_all(&layer, &sample.tar, 1_000_000);
}

#[test]
fn a_span_that_failed_is_left_alone_for_a_moment() {
    let sample = Sample::gzip(3, 100_000);
    let rig = Rig::new(FetchConfig {
        negative_backoff: Duration::from_secs(3600),
        ..no_readahead()
    });
    let source = MemoryBlob::new(sample.blob.clone());
    source.fault_always(Some(Fault::Fail(MemoryBlob::status(403))));
    let layer = rig.open(&sample, source.clone());
    for _ in 0..5 {
        read(&layer, 0, 10).unwrap_err();
    }
    assert_eq!(source.requests().len(), 1);
}

#[test]
fn a_source_that_hangs_is_an_error_and_not_a_hang() {
    let sample = Sample::gzip(10, 100_000);
    let config = FetchConfig {
        read_timeout: Duration::from_secs(3),
        ..no_readahead()
    };
    let rig = Rig::paused(config, LayerStoreConfig::default());
    let _time = rig.enter();
    let source = MemoryBlob::new(sample.blob.clone());
    source.fault_always(Some(Fault::Hang));
    let layer = rig.open(&sample, source.clone());
    let answers = start(&layer, 0, 10);
    rig.pass(Duration::from_secs(4));
    let error = finish(&answers).unwrap_err();
    assert!(matches!(error, ReadError::Source { .. }), "{error}");
    source.fault_always(None);
    let answers = start(&layer, 0, sample.tar.len());
    eventually("fetched, and memory is returned", || {
        rig.pass(Duration::from_millis(1));
        let stats = rig.fetcher.stats();
        stats.requests_in_flight == 0 && stats.memory_in_use == 0
    });
    assert!(finish(&answers).unwrap() == sample.tar);
}

/// Offsets of the first bytes of spans that are no neighbours.
fn scattered(layer: &LazyLayer) -> Vec<u64> {
    let spans = layer.stored().spans();
    (0..spans.len())
        .step_by(2)
        .map(|span| spans.span(SpanId(span)).uncompressed)
        .filter(|range| !range.is_empty())
        .map(|range| range.start)
        .collect()
}

/// The time to EIO that docs/troubleshooting.md states.
#[test]
fn a_registry_that_delivers_nothing_is_an_error_after_sixty_seconds() {
    let sample = Sample::gzip(30, 20_000);
    let config = FetchConfig {
        max_readahead: 0,
        ..FetchConfig::default()
    };
    let rig = Rig::paused(config, LayerStoreConfig::default());
    let _time = rig.enter();
    let source = MemoryBlob::new(sample.blob.clone());
    source.fault_always(Some(Fault::Hang));
    let layer = rig.open(&sample, source.clone());
    // More than may be in flight: the others wait their turn.
    let reads: Vec<_> = scattered(&layer)
        .into_iter()
        .map(|at| start(&layer, at, 1))
        .collect();
    assert!(reads.len() > 30, "{}", reads.len());
    rig.pass(Duration::from_secs(59));
    assert!(reads.iter().all(|read| read.try_recv().is_err()));
    let requests = source.requests().len();
    rig.pass(Duration::from_secs(2));
    for read in reads {
        let error = read.try_recv().unwrap().unwrap_err();
        assert!(matches!(error, ReadError::Source { .. }), "{error}");
    }
    assert_eq!(
        source.requests().len(),
        requests,
        "no read has time for another"
    );

    source.fault_always(None);
    rig.pass(Duration::from_secs(1));
    let answers = start(&layer, 0, 10);
    rig.pass(Duration::from_secs(1));
    assert_eq!(finish(&answers).unwrap(), sample.tar[..10]);
}

#[test]
fn reads_that_wait_their_turn_at_a_slow_registry_are_answered() {
    let sample = Sample::gzip(30, 20_000);
    let config = FetchConfig {
        max_readahead: 0,
        ..FetchConfig::default()
    };
    let rig = Rig::paused(config, LayerStoreConfig::default());
    let _time = rig.enter();
    let source = MemoryBlob::new(sample.blob.clone());
    source.fault_always(Some(Fault::Delay(Duration::from_secs(50))));
    let layer = rig.open(&sample, source);
    let reads: Vec<_> = scattered(&layer)
        .into_iter()
        .map(|at| (at, start(&layer, at, 1)))
        .collect();
    eventually("answered", || {
        rig.pass(Duration::from_secs(10));
        let stats = rig.fetcher.stats();
        stats.queued_spans == 0 && stats.requests_in_flight == 0 && stats.memory_in_use == 0
    });
    for (at, answers) in reads {
        let at = usize::try_from(at).unwrap();
        assert_eq!(finish(&answers).unwrap()[..], sample.tar[at..=at]);
    }
}

#[test]
fn closing_a_layer_answers_who_waits_and_stops_its_requests() {
    let sample = Sample::gzip(10, 100_000);
    let rig = Rig::new(FetchConfig {
        read_timeout: Duration::from_secs(3600),
        ..no_readahead()
    });
    let source = MemoryBlob::new(sample.blob.clone());
    source.fault_always(Some(Fault::Hang));
    let layer = rig.open(&sample, source.clone());
    let waiting: Vec<_> = (0..10).map(|n| start(&layer, n * 100_000, 10)).collect();
    eventually("asked", || !source.requests().is_empty());
    layer.close();
    for answers in waiting {
        assert!(matches!(finish(&answers), Err(ReadError::Closed)));
    }
    let answer = finish(&start(&layer, 0, 1));
    assert!(matches!(answer, Err(ReadError::Closed)));
    eventually("idle", || rig.fetcher.stats().requests_in_flight == 0);
    assert_eq!(rig.fetcher.stats().memory_in_use, 0);
}

#[test]
fn shutting_down_or_losing_the_runtime_answers_who_waits() {
    let sample = Sample::gzip(10, 100_000);
    for lose_runtime in [false, true] {
        let config = FetchConfig {
            read_timeout: Duration::from_secs(3600),
            ..no_readahead()
        };
        let mut rig = Rig::new(config);
        let source = MemoryBlob::new(sample.blob.clone());
        source.fault_always(Some(Fault::Hang));
        let layer = rig.open(&sample, source.clone());
        let answers = start(&layer, 0, 10);
        eventually("asked", || !source.requests().is_empty());
        if lose_runtime {
            rig.runtime
                .take()
                .unwrap()
                .shutdown_timeout(Duration::from_secs(10));
        } else {
            rig.shut_down();
        }
        finish(&answers).unwrap_err();
        finish(&start(&layer, 500_000, 10)).unwrap_err();
    }
}

#[test]
fn demand_does_not_wait_for_a_background_that_is_stuck() {
    let sample = Sample::gzip(60, 50_000);
    let mut config = FetchConfig {
        max_request_bytes: 100_000,
        ..no_readahead()
    };
    config.read_timeout = Duration::from_secs(3600);
    config.background.silence_period = Some(Duration::ZERO);
    config.background.fetch_period = Some(Duration::from_millis(1));
    let rig = Rig::new(config);
    // The background's requests start at 0, and all are held; what is read afterwards is not.
    let gate = Arc::new(Semaphore::new(0));
    let blob = MemoryBlob::new(sample.blob.clone());
    let source = Held {
        blob,
        until: 1_000_000,
        gate: gate.clone(),
    };
    let layer = rig.open(&sample, source);
    layer.start_background(Digest::of(b"image"));
    eventually("stuck", || rig.fetcher.stats().requests_in_flight >= 3);
    let at = sample.tar.len() - 1_500_000;
    let got = read(&layer, at as u64, 400_000).unwrap();
    assert!(got == sample.tar[at..at + 400_000]);
    assert!(rig.fetcher.stats().background.requests > 0);
    gate.add_permits(1000);
    eventually("filled", || layer.stored().is_complete());
    check_all(&layer, &sample.tar, 1_000_000);
}

#[test]
fn a_reader_does_not_wait_for_a_long_request_of_less_urgency() {
    // Incompressible enough: the span read is more than 4 MiB behind the start of the request.
    let sample = Sample::gzip(140, 200_000);
    let mut config = no_readahead();
    config.read_timeout = Duration::from_secs(3600);
    let rig = Rig::new(config);
    let gate = Arc::new(Semaphore::new(0));
    let blob = MemoryBlob::new(sample.blob.clone());
    let layer = rig.open(
        &sample,
        Held {
            blob: blob.clone(),
            until: 1,
            gate: gate.clone(),
        },
    );
    layer.prefetch(0..u32::MAX);
    eventually("asked", || !blob.requests().is_empty());
    let at = sample.tar.len() - 200_000;
    let got = read(&layer, at as u64, 100_000).unwrap();
    assert!(got == sample.tar[at..at + 100_000]);
    gate.add_permits(1000);
    eventually("filled", || layer.stored().is_complete());
}

#[test]
fn the_background_fills_a_quiet_layer_and_stops_when_it_is_closed() {
    let sample = Sample::gzip(60, 100_000);
    let mut config = quick();
    config.background.silence_period = Some(Duration::ZERO);
    config.background.fetch_period = Some(Duration::from_millis(1));
    let rig = Rig::new(config.clone());
    let layer = rig.open(&sample, MemoryBlob::new(sample.blob.clone()));
    layer.start_background(Digest::of(b"image"));
    eventually("filled", || layer.stored().is_complete());
    eventually("out of the queue", || {
        rig.fetcher.stats().background_layers == 0
    });
    assert_eq!(rig.fetcher.stats().demand.requests, 0);
    check_all(&layer, &sample.tar, 1_000_000);

    let rig = Rig::new(config.clone());
    let source = MemoryBlob::new(sample.blob.clone());
    source.fault_always(Some(Fault::Delay(Duration::from_secs(3600))));
    let layer = rig.open(&sample, source);
    layer.start_background(Digest::of(b"image"));
    eventually("asked", || rig.fetcher.stats().requests_in_flight > 0);
    layer.close();
    eventually("stopped", || rig.fetcher.stats().requests_in_flight == 0);
    assert_eq!(rig.fetcher.stats().background_layers, 0);

    config.background.disable = true;
    let rig = Rig::new(config);
    let layer = rig.open(&sample, MemoryBlob::new(sample.blob.clone()));
    layer.start_background(Digest::of(b"image"));
    assert_eq!(rig.fetcher.stats().background_layers, 0);
}

#[test]
fn a_full_background_queue_drops_as_configured() {
    for (policy, filled) in [
        (soci_fetch::DropPolicy::Newest, 0),
        (soci_fetch::DropPolicy::Oldest, 1),
    ] {
        let samples = [Sample::gzip(3, 100_000), Sample::gzip(4, 100_000)];
        let mut config = quick();
        config.background.silence_period = Some(Duration::ZERO);
        config.background.fetch_period = Some(Duration::from_millis(200));
        config.background.max_queue_size = Some(1);
        config.background.drop_policy = policy;
        let rig = Rig::paused(config, LayerStoreConfig::default());
        let _time = rig.enter();
        let layers = [&samples[0], &samples[1]]
            .map(|sample| rig.open(sample, MemoryBlob::new(sample.blob.clone())));
        // Held back, so that the first is still in the queue when the second comes.
        layers
            .iter()
            .for_each(|layer| layer.start_background(Digest::of(b"image")));
        assert_eq!(rig.fetcher.stats().background_dropped, 1);
        eventually("filled", || {
            rig.pass(Duration::from_millis(10));
            layers[filled].stored().is_complete()
        });
        assert!(!layers[1 - filled].stored().is_complete());
    }
}

/// Needs root: mounts a tmpfs of 4 MiB.
#[test]
fn readers_are_served_although_the_disk_is_full() {
    // Spans of a layer without a container give way; those of one in use that were just read do not.
    for in_use in [false, true] {
        let sample = Sample::gzip(60, 100_000);
        let dir = tempfile::tempdir().unwrap();
        let _mount = Tmpfs::mount(dir.path());
        let dir = Arc::new(dir);
        let rig = Rig::at(dir, quick(), LayerStoreConfig::default());
        let source = MemoryBlob::new(sample.blob.clone());
        let layer = rig.open(&sample, source);
        layer.stored().standing().set_in_use(in_use);
        check_all(&layer, &sample.tar, 10_000);
        let stats = rig.fetcher.stats();
        if in_use {
            let error = layer.status().error.unwrap().detail;
            assert!(error.contains("no space"), "{error}");
            assert!(stats.store_failures > 0);
        }
        // A span that could not be stored is not fetched for each read of it.
        assert!(
            stats.spans_verified < 4 * u64::from(layer.stored().spans().len()),
            "{stats:?}"
        );
        // What was stored stays, and is right. Readers are answered before a span is stored, for which
        // all others may have gone.
        eventually("something is stored", || layer.stored().fetched_bytes() > 0);
        check_all(&layer, &sample.tar, 100_000);
        drop((layer, rig));
    }
}

struct Tmpfs(std::path::PathBuf);

impl Tmpfs {
    fn mount(at: &std::path::Path) -> Self {
        let size = c"size=4m";
        rustix::mount::mount(
            "tmpfs",
            at,
            "tmpfs",
            rustix::mount::MountFlags::empty(),
            size,
        )
        .expect("mounting a tmpfs: this test needs root");
        Self(at.to_path_buf())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

/// A blob whose answers to requests that start before an offset wait for permission.
struct Held {
    blob: MemoryBlob,
    until: u64,
    gate: Arc<Semaphore>,
}

#[async_trait::async_trait]
impl soci_registry::BlobSource for Held {
    fn size(&self) -> u64 {
        self.blob.size()
    }

    async fn stream_range(
        &self,
        range: std::ops::Range<u64>,
        deadline: soci_registry::Deadline,
    ) -> Result<soci_registry::ByteStream, soci_registry::RegistryError> {
        let held = range.start < self.until;
        let answer = self.blob.stream_range(range, deadline).await;
        if held {
            self.gate.acquire().await.expect("never closed").forget();
        }
        answer
    }

    fn describe(&self) -> String {
        self.blob.describe()
    }
}
