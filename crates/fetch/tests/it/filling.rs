//! Filling: whose turn it is, and how it gives way to readers, to registries and to the disk.

use std::sync::Arc;
use std::time::Duration;

use crate::support::{Rig, Sample, check_all, eventually, finish, quick, read, start};
use soci_fetch::{FetchConfig, FillState, LayerData as _, LazyLayer};
use soci_oci::Digest;
use soci_registry::RegistryError;
use soci_registry::testing::{Fault, MemoryBlob};
use soci_store::LayerStoreConfig;
use soci_ztoc::SpanId;

/// A request that is never answered within a test.
const NEVER: Duration = Duration::from_secs(3600);

fn config() -> FetchConfig {
    FetchConfig {
        max_readahead: 0,
        read_timeout: 2 * NEVER,
        ..quick()
    }
}

fn image(number: u8) -> Digest {
    Digest::of(&[number])
}

fn state(layer: &LazyLayer) -> FillState {
    layer.fill().state
}

/// Advances the time of a paused rig until a condition holds.
#[test]
fn a_reader_of_another_layer_ends_the_requests_of_filling_with_their_span() {
    let samples = [Sample::gzip(140, 200_000), Sample::gzip(3, 100_000)];
    let mut config = config();
    config.background.silence_period = Some(Duration::ZERO);
    let rig = Rig::new(config);
    let held = MemoryBlob::new(samples[0].blob.clone());
    held.fault(0, Fault::Delay(NEVER));
    let filled = rig.open(&samples[0], held.clone());
    filled.start_background(image(0));
    eventually("requested", || !held.requests().is_empty());
    let whole = held.requests()[0].clone();
    let reader = rig.open(&samples[1], MemoryBlob::new(samples[1].blob.clone()));
    read(&reader, 1000, 10).unwrap();
    // All but its first span is requested again, although the request is not answered. Which of the
    // requests that was depends on the order in which their tasks ran.
    let spans = filled.stored().spans();
    let compressed = |span: u32| spans.span(SpanId(span)).compressed;
    let held_back = (0..spans.len()).find(|span| compressed(*span).start == whole.start);
    let held_back = held_back.unwrap();
    let is_stored = |span: u32| filled.stored().has(SpanId(span));
    eventually("the rest is filled", || {
        (0..spans.len()).all(|span| span == held_back || is_stored(span))
    });
    assert!(!is_stored(held_back));
    let again = compressed(held_back + 1).start..whole.end;
    assert!(held.requests().contains(&again), "{:?}", held.requests());
}

#[test]
fn filling_begins_when_a_start_is_over_and_not_between_its_reads() {
    let sample = Sample::gzip(60, 100_000);
    let rig = Rig::paused(config(), LayerStoreConfig::default());
    let _time = rig.enter();
    let layer = rig.open(&sample, MemoryBlob::new(sample.blob.clone()));
    layer.start_background(image(0));
    for at in 0..10 {
        let answers = start(&layer, at * 200_000, 10);
        rig.passes_until("answered", || rig.fetcher.stats().requests_in_flight == 0);
        finish(&answers).unwrap();
        rig.pass(Duration::from_secs(1));
        assert_eq!(state(&layer), FillState::Waiting);
    }
    assert_eq!(rig.fetcher.stats().background.requests, 0);
    rig.passes_until("filled", || layer.stored().is_complete());
    rig.passes_until("out of the queue", || {
        rig.fetcher.stats().background_layers == 0
    });
    assert_eq!(state(&layer), FillState::Complete);
    check_all(&layer, &sample.tar, 1_000_000);
}

#[test]
fn an_image_that_is_read_is_filled_before_one_that_only_lies_there() {
    let samples = [30, 31, 32].map(|files| Sample::gzip(files, 100_000));
    let mut config = config();
    // A layer at a time.
    config.background.fetch_period = Some(Duration::from_millis(50));
    let rig = Rig::paused(config, LayerStoreConfig::default());
    let _time = rig.enter();
    let sources = samples
        .each_ref()
        .map(|sample| MemoryBlob::new(sample.blob.clone()));
    let [idle, below, top] = [0, 1, 2].map(|at| rig.open(&samples[at], sources[at].clone()));
    idle.start_background(image(0));
    below.start_background(image(1));
    top.start_background(image(1));
    // As the file system does: what is not stored is requested then.
    assert!(!top.try_read(1000, &mut [0; 10]).unwrap());
    let answers = start(&top, 1000, 10);
    rig.passes_until("answered", || rig.fetcher.stats().requests_in_flight == 0);
    finish(&answers).unwrap();
    // The rest of the layer that is read, then the other one of its image. The last spans may be on
    // their way to the disk when the next layer is requested.
    let requests = |at: usize| sources[at].requests().len();
    rig.passes_until("the next", || requests(0) + requests(1) > 0);
    assert!(
        requests(2) > 1 && requests(0) == 0,
        "{:?}",
        [0, 1, 2].map(|at| sources[at].requests())
    );
    rig.passes_until("the last", || requests(0) > 0);
    assert!(requests(1) > 0);
    rig.passes_until("filled", || {
        [&idle, &below, &top].map(|layer| layer.stored().is_complete()) == [true; 3]
    });
}

#[test]
fn a_registry_that_throttles_filling_is_left_alone_and_readers_continue() {
    let sample = Sample::gzip(60, 100_000);
    let rig = Rig::paused(config(), LayerStoreConfig::default());
    let _time = rig.enter();
    let source = MemoryBlob::new(sample.blob.clone());
    source.fault_always(Some(Fault::Fail(MemoryBlob::status(429))));
    let layer = rig.open(&sample, source.clone());
    layer.start_background(image(0));
    rig.passes_until("throttled", || state(&layer) == FillState::Throttled);
    let refused = source.requests().len();
    rig.pass(Duration::from_secs(3));
    assert_eq!(source.requests().len(), refused);
    source.fault_always(None);
    let answers = start(&layer, 1000, 10);
    rig.passes_until("answered", || rig.fetcher.stats().requests_in_flight == 0);
    finish(&answers).unwrap();
    assert_eq!(rig.fetcher.stats().background.spans, 0);
    rig.passes_until("filled", || layer.stored().is_complete());
}

#[test]
fn a_registry_that_has_too_many_requests_of_filling_does_not_fail_readers() {
    let sample = Sample::gzip(60, 100_000);
    let mut config = config();
    config.background.silence_period = Some(Duration::ZERO);
    // More requests at a time than failures open a circuit.
    config.max_request_bytes = 300_000;
    for retry_after in [None, Some(Duration::from_secs(1))] {
        let rig = Rig::paused(config.clone(), LayerStoreConfig::default());
        let _time = rig.enter();
        let source = MemoryBlob::new(sample.blob.clone());
        let mut busy = MemoryBlob::status(if retry_after.is_some() { 503 } else { 429 });
        if let RegistryError::Status {
            retry_after: at, ..
        } = &mut busy
        {
            *at = retry_after;
        }
        source.fault_always(Some(Fault::Fail(busy)));
        let layer = rig.open(&sample, source.clone());
        layer.start_background(image(0));
        rig.passes_until("throttled", || state(&layer) == FillState::Throttled);
        assert!(source.requests().len() >= 3, "{:?}", source.requests());
        source.fault_always(None);
        let answers = start(&layer, 1000, 10);
        rig.passes_until("answered", || rig.fetcher.stats().requests_in_flight == 0);
        finish(&answers).unwrap();
    }
}

#[test]
fn a_layer_that_a_client_waits_for_is_filled_first_although_filling_is_off() {
    let samples = [Sample::gzip(30, 100_000), Sample::gzip(31, 100_000)];
    let mut config = config();
    config.background.disable = true;
    config.background.silence_period = Some(NEVER);
    let rig = Rig::new(config);
    let layers = [0, 1].map(|at| {
        let source = MemoryBlob::new(samples[at].blob.clone());
        if at == 0 {
            source.fault(0, Fault::Delay(NEVER));
        }
        let layer = rig.open(&samples[at], source);
        layer.start_background(image(0));
        layer
    });
    assert_eq!(state(&layers[1]), FillState::Off);
    layers[1].request_fill(NEVER);
    eventually("filled", || state(&layers[1]) == FillState::Complete);
    assert_eq!(state(&layers[0]), FillState::Off);
    assert_eq!(layers[0].stored().stored_spans(), 0);
    // A request that is not repeated is forgotten.
    layers[0].request_fill(Duration::from_millis(100));
    eventually("forgotten", || rig.fetcher.stats().background_layers == 0);
    assert_eq!(state(&layers[0]), FillState::Off);
}

#[test]
fn filling_stops_below_the_limit_of_the_store_and_says_so() {
    let sample = Sample::gzip(60, 100_000);
    let store = LayerStoreConfig {
        budget_bytes: Some(2_000_000),
        ..LayerStoreConfig::default()
    };
    let rig = Rig::paused(config(), store);
    let _time = rig.enter();
    let layer = rig.open(&sample, MemoryBlob::new(sample.blob.clone()));
    layer.start_background(image(0));
    rig.passes_until("stopped", || state(&layer) == FillState::NoRoom);
    assert!(!layer.stored().is_complete());
    assert_eq!(layer.status().error, None, "no failure of the layer");
}

#[test]
fn a_limit_below_the_size_of_a_span_fills_nothing_and_readers_get_the_truth() {
    let sample = Sample::gzip(20, 100_000);
    let store = LayerStoreConfig {
        budget_bytes: Some(1_000),
        ..LayerStoreConfig::default()
    };
    let mut config = config();
    config.background.silence_period = Some(Duration::ZERO);
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let rig = Rig::at(dir, config, store);
    let source = MemoryBlob::new(sample.blob.clone());
    let layer = rig.open(&sample, source.clone());
    layer.start_background(image(0));
    eventually("stopped", || state(&layer) == FillState::NoRoom);
    assert_eq!(rig.fetcher.stats().background.spans, 0);
    // A container uses it.
    layer.stored().standing().set_in_use(true);
    check_all(&layer, &sample.tar, 100_000);
    assert_eq!(layer.status().error, None, "no failure of the layer");
    // What was read is stored above the limit for as long as readers may need it again.
    let asked = source.requests().len();
    check_all(&layer, &sample.tar[..1_000_000], 100_000);
    assert_eq!(source.requests().len(), asked);
    // It goes when no container uses the layer.
    layer.stored().standing().set_in_use(false);
    layer.stored().standing().note_source(true);
    eventually("within the limit", || {
        let _ = rig.store.trim();
        rig.store.usage().stored_bytes <= 1_000
    });
    check_all(&layer, &sample.tar[..1_000_000], 100_000);
}

#[test]
fn a_layer_that_is_removed_while_it_is_filled_leaves_no_work() {
    let sample = Sample::gzip(60, 100_000);
    let mut config = config();
    config.background.silence_period = Some(Duration::ZERO);
    let rig = Rig::new(config);
    let source = MemoryBlob::new(sample.blob.clone());
    source.fault_always(Some(Fault::Delay(NEVER)));
    let layer = rig.open(&sample, source);
    layer.start_background(image(0));
    layer.request_fill(NEVER);
    eventually("requested", || rig.fetcher.stats().requests_in_flight > 0);
    rig.store
        .remove(sample.digest(), sample.ztoc_digest())
        .unwrap();
    drop(layer);
    eventually("nothing is left", || {
        let stats = rig.fetcher.stats();
        stats.requests_in_flight + stats.background_layers + stats.queued_spans == 0
    });
}
