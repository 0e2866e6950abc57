//! Every byte that a lazy layer gives is the truth, however it is read.

use std::sync::Arc;

use crate::support::{Rig, Sample, check_all, eventually, finish, quick, read, start};
use soci_fetch::{FetchConfig, LayerData as _, ReadError, StartId};
use soci_registry::BlobSource as _;
use soci_registry::testing::MemoryBlob;
use soci_store::LayerStoreConfig;
use soci_ztoc::SpanId;

#[test]
fn sequential_reads_give_the_truth_and_fetch_each_byte_once() {
    let sample = Sample::gzip(100, 100_000);
    let rig = Rig::new(quick());
    let source = MemoryBlob::new(sample.blob.clone()).with_piece_size(7000);
    let layer = rig.open(&sample, source.clone());
    check_all(&layer, &sample.tar, 33_333);
    eventually("complete", || layer.stored().is_complete());
    assert_eq!(layer.status().fetched_size, layer.status().size);
    assert_eq!(layer.status().error, None);
    let stats = rig.fetcher.stats();
    let spans = u64::from(layer.stored().spans().len());
    assert_eq!(stats.demand.spans + stats.readahead.spans, spans);
    assert_eq!(stats.spans_verified, spans);
    // Read ahead, in fewer requests than there are spans.
    assert!(stats.readahead.spans > spans / 2, "{stats:?}");
    assert!((source.requests().len() as u64) < spans / 2, "{stats:?}");
    // Neighbours share a byte, so those between two requests may come twice.
    let bytes: u64 = source
        .requests()
        .iter()
        .map(|range| range.end - range.start)
        .sum();
    assert!(bytes <= sample.blob.len() as u64 + source.requests().len() as u64);
}

/// What is read into the page cache is right, logged for the container, and not read ahead of.
#[test]
fn reads_into_the_page_cache_give_the_truth_and_begin_no_readahead() {
    let sample = Sample::gzip(100, 100_000);
    let rig = Rig::new(quick());
    let layer = rig.open(&sample, MemoryBlob::new(sample.blob.clone()));
    let log = layer.log_reads();
    let spans = layer.stored().spans().len();
    let half: Vec<u32> = (0..spans / 2).collect();
    layer.prefetch_each(&half, StartId::unique());
    eventually("fetched", || {
        half.iter().all(|span| layer.stored().has(SpanId(*span)))
    });
    let end = layer.stored().spans().get(SpanId(spans / 2 - 1)).unwrap();
    let end = usize::try_from(end.uncompressed.end).unwrap();
    let ahead = layer.clone().for_page_cache();
    let mut buf = vec![0; 10_000];
    for at in (0..end - buf.len()).step_by(buf.len()) {
        assert!(ahead.try_read(at as u64, &mut buf).unwrap());
        assert!(buf == sample.tar[at..at + buf.len()], "{at}");
    }
    assert!(log.first_reads().len() + 1 >= half.len());
    assert_eq!(rig.fetcher.stats().readahead.spans, 0);
    // The same reads of a container.
    for at in (0..end - buf.len()).step_by(buf.len()) {
        assert!(layer.try_read(at as u64, &mut buf).unwrap());
    }
    eventually("read ahead", || rig.fetcher.stats().readahead.spans > 0);
    // A span that is missing is fetched for it all the same.
    let (done, answer) = std::sync::mpsc::channel();
    let last = sample.tar.len() - 1000;
    ahead.read(
        last as u64,
        1000,
        Box::new(move |read| done.send(read).unwrap()),
    );
    assert!(answer.recv().unwrap().unwrap() == sample.tar[last..]);
}

#[test]
fn random_reads_of_any_size_give_the_truth() {
    let sample = Sample::gzip(60, 100_000);
    let rig = Rig::new(quick());
    let layer = rig.open(&sample, MemoryBlob::new(sample.blob.clone()));
    let mut seed = 7_u64;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(seed >> 33).unwrap() % below
    };
    for _ in 0..300 {
        let at = random(sample.tar.len());
        let len = random((sample.tar.len() - at).min(400_000)) + 1;
        let got = read(&layer, at as u64, len).unwrap();
        assert!(got == sample.tar[at..at + len], "{at}+{len}");
    }
}

#[test]
fn many_readers_of_one_span_share_one_request() {
    let sample = Sample::gzip(20, 100_000);
    let rig = Rig::new(FetchConfig {
        max_readahead: 0,
        ..quick()
    });
    let source = MemoryBlob::new(sample.blob.clone());
    let layer = rig.open(&sample, source.clone());
    let span = layer.stored().spans().span(SpanId(3)).uncompressed;
    let truth = &sample.tar[usize::try_from(span.start).unwrap()..][..1000];
    std::thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| assert!(read(&layer, span.start, 1000).unwrap() == truth));
        }
    });
    assert_eq!(source.requests().len(), 1);
    assert_eq!(rig.fetcher.stats().spans_verified, 1);
}

#[test]
fn concurrent_readers_give_the_truth_within_a_small_memory_budget() {
    let sample = Sample::gzip(100, 50_000);
    let config = FetchConfig {
        memory_budget: 400_000,
        max_request_bytes: 200_000,
        ..quick()
    };
    let rig = Rig::new(config);
    let layer = rig.open(
        &sample,
        MemoryBlob::new(sample.blob.clone()).with_piece_size(1000),
    );
    let largest = (0..layer.stored().spans().len())
        .map(|id| layer.stored().spans().span(SpanId(id)))
        .map(|span| {
            span.uncompressed.end - span.uncompressed.start + span.compressed.end
                - span.compressed.start
        })
        .max()
        .unwrap();
    assert!(largest < 400_000);
    std::thread::scope(|scope| {
        for step in [1000, 4096, 70_000, 131_072, 500_000] {
            let (layer, tar) = (&layer, &sample.tar);
            scope.spawn(move || check_all(layer, tar, step));
        }
    });
    eventually("memory is returned", || {
        rig.fetcher.stats().memory_in_use == 0
    });
    assert!(
        rig.fetcher.stats().memory_peak <= 400_000,
        "{:?}",
        rig.fetcher.stats()
    );
}

#[test]
fn a_span_larger_than_the_memory_budget_is_served() {
    let sample = Sample::gzip(10, 300_000);
    let rig = Rig::new(FetchConfig {
        memory_budget: 1000,
        ..quick()
    });
    let layer = rig.open(&sample, MemoryBlob::new(sample.blob.clone()));
    check_all(&layer, &sample.tar, 65_536);
}

#[test]
fn after_a_restart_what_was_fetched_needs_no_source() {
    let sample = Sample::gzip(30, 100_000);
    let dir = Rig::left_behind(&sample);

    let rig = Rig::at(dir, quick(), LayerStoreConfig::default());
    let nothing = MemoryBlob::new(sample.blob.clone());
    nothing.fault_always(Some(soci_registry::testing::Fault::Fail(
        MemoryBlob::unreachable(),
    )));
    let layer = rig.open(&sample, nothing.clone());
    check_all(&layer, &sample.tar, 100_000);
    assert_eq!(nothing.requests().len(), 0);
}

/// Readers are answered before their span is stored: a fetcher that ends just then waits for it.
#[test]
fn what_a_reader_has_got_is_stored_when_the_fetcher_has_ended() {
    let sample = Sample::gzip(3, 100_000);
    let rig = Rig::paused(quick(), LayerStoreConfig::default());
    let layer = rig.open(&sample, MemoryBlob::new(sample.blob.clone()));
    // The thread that will store the span answers first, and is kept from continuing.
    let (answer, answered) = std::sync::mpsc::channel();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let done = move |read: Result<_, ReadError>| {
        answer.send(read.map(drop)).unwrap();
        let _ = released.recv();
    };
    let _time = rig.enter();
    layer.read(0, 1, Box::new(done));
    rig.passes_until("answered", || {
        answered.try_recv().is_ok_and(|read| read.is_ok())
    });
    assert!(!layer.stored().has(SpanId(0)));
    rig.shut_down_after(|| {
        release.send(()).unwrap();
        eventually("stored", || layer.stored().has(SpanId(0)));
    });
}

#[test]
fn what_rots_on_disk_is_fetched_again_and_never_served() {
    let sample = Sample::gzip(30, 100_000);
    let dir = Rig::left_behind(&sample);

    let name = format!("{}-{}", sample.digest().hex(), sample.ztoc_digest().hex());
    let path = dir.path().join("layers").join(name).join("data");
    let mut data = std::fs::read(&path).unwrap();
    data[1_234_567] ^= 1;
    std::fs::write(&path, data).unwrap();
    let rig = Rig::at(dir, quick(), LayerStoreConfig::default());
    let source = MemoryBlob::new(sample.blob.clone());
    let layer = rig.open(&sample, source.clone());
    check_all(&layer, &sample.tar, 100_000);
    assert_eq!(source.requests().len(), 1);
}

#[test]
fn reads_outside_of_the_layer_are_refused() {
    let sample = Sample::gzip(3, 100_000);
    let rig = Rig::new(quick());
    let layer = rig.open(&sample, MemoryBlob::new(sample.blob.clone()));
    let size = layer.stored().spans().uncompressed_size();
    for (offset, len) in [
        (size, 1),
        (size - 1, 2),
        (u64::MAX, 1),
        (u64::MAX, usize::MAX),
    ] {
        let error = finish(&start(&layer, offset, len)).unwrap_err();
        assert!(matches!(error, ReadError::OutOfRange { .. }), "{error}");
    }
    assert_eq!(finish(&start(&layer, size, 0)).unwrap(), "");
}

#[test]
fn a_store_with_a_budget_keeps_serving_the_truth() {
    let sample = Sample::gzip(60, 100_000);
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let budget = LayerStoreConfig {
        budget_bytes: Some(1_000_000),
        ..LayerStoreConfig::default()
    };
    let rig = Rig::at(dir, quick(), budget);
    let layer = rig.open(&sample, MemoryBlob::new(sample.blob.clone()));
    std::thread::scope(|scope| {
        for step in [50_000, 131_072] {
            let (layer, tar) = (&layer, &sample.tar);
            scope.spawn(move || check_all(layer, tar, step));
        }
    });
    assert!(rig.store.usage().stored_bytes <= 1_000_000);
}

#[test]
fn golden_layers_read_the_same_through_the_ztocs_of_the_reference() {
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let mut layers = 0;
    for case in std::fs::read_dir(&golden).unwrap() {
        let case = case.unwrap().path();
        let Ok(index) = std::fs::read_to_string(case.join("soci-v1/index-digest")) else {
            continue;
        };
        let blob = |folder: &str, digest: &soci_oci::Digest| {
            std::fs::read(case.join(folder).join("blobs/sha256").join(digest.hex())).ok()
        };
        let index = blob("soci-v1", &index.trim().parse().unwrap()).unwrap();
        for ztoc in soci_ztoc::soci_index::SociIndex::parse(&index)
            .unwrap()
            .ztocs
        {
            let compressed = blob("image", &ztoc.layer_digest).unwrap();
            let tar = if ztoc.layer_media_type.ends_with("gzip") {
                let mut tar = Vec::new();
                let mut decoder = flate2::read::MultiGzDecoder::new(&compressed[..]);
                std::io::Read::read_to_end(&mut decoder, &mut tar).unwrap();
                tar
            } else {
                compressed.clone()
            };
            let sample = Sample {
                tar,
                blob: compressed.into(),
                ztoc: blob("soci-v1", &ztoc.descriptor.digest).unwrap(),
            };
            let rig = Rig::new(quick());
            let layer = rig.open(
                &sample,
                MemoryBlob::new(sample.blob.clone()).with_piece_size(999),
            );
            let size = usize::try_from(layer.stored().spans().uncompressed_size()).unwrap();
            check_all(&layer, &sample.tar[..size], 10_007);
            assert_eq!(layer.status().size, MemoryBlob::new(sample.blob).size());
            layers += 1;
        }
    }
    assert!(layers >= 9, "only {layers} golden layers found");
}
