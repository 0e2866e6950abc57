//! Where a response takes a while, a span that a reader waits for comes in two, and whatever becomes
//! of the second, the reader gets the truth.

use std::ops::Range;
use std::time::Duration;

use futures::StreamExt as _;
use soci_fetch::{LayerData as _, LazyLayer};
use soci_registry::testing::{Fault, MemoryBlob};
use soci_registry::{BlobSource, ByteStream, Deadline, RegistryError};
use soci_store::LayerStoreConfig;
use soci_ztoc::SpanId;

use crate::support::{Rig, Sample, finish, no_readahead, read, start};

const SPAN_SIZE: u64 = 2_000_000;

/// A source whose responses bring 64 KiB at most every few milliseconds.
#[derive(Debug, Clone)]
struct Slow(MemoryBlob);

#[async_trait::async_trait]
impl BlobSource for Slow {
    fn size(&self) -> u64 {
        self.0.size()
    }

    async fn stream_range(
        &self,
        range: Range<u64>,
        deadline: Deadline,
    ) -> Result<ByteStream, RegistryError> {
        let pieces = self.0.stream_range(range, deadline).await?;
        let slowed = pieces.then(async |piece| {
            tokio::time::sleep(Duration::from_millis(5)).await;
            piece
        });
        Ok(slowed.boxed())
    }

    fn describe(&self) -> String {
        self.0.describe()
    }
}

/// Reads a byte in a span; returns the requests that were made for it.
fn read_in(layer: &LazyLayer, sample: &Sample, source: &MemoryBlob, span: u32) -> Vec<Range<u64>> {
    let before = source.requests().len();
    let at = layer.stored().spans().span(SpanId(span)).uncompressed.start;
    let got = read(layer, at, 100_000).unwrap();
    let at = usize::try_from(at).unwrap();
    assert!(got == sample.tar[at..at + 100_000], "span {span}");
    source.requests().split_off(before)
}

#[test]
fn a_span_comes_in_two_halves_once_responses_are_known_to_be_slow() {
    let sample = Sample::gzip(100, SPAN_SIZE);
    let source = MemoryBlob::new(sample.blob.clone());
    let rig = Rig::new(no_readahead());
    let layer = rig.open(&sample, Slow(source.clone()));
    let whole = |span| layer.stored().spans().span(SpanId(span)).compressed;
    assert_eq!(read_in(&layer, &sample, &source, 0), [whole(0)]);
    for span in [2, 1] {
        let halves = read_in(&layer, &sample, &source, span);
        let [first, second] = &halves[..] else {
            panic!("{halves:?} of {:?}", whole(span));
        };
        assert_eq!(first.end, second.start);
        assert_eq!(first.start..second.end, whole(span));
        assert!(second.end - second.start <= first.end - first.start + 1);
    }
    assert_eq!(rig.fetcher.stats().demand.requests, 5);
    assert_eq!(rig.fetcher.stats().demand.spans, 3);
}

#[test]
fn a_span_comes_in_one_response_where_they_are_fast() {
    let sample = Sample::gzip(100, SPAN_SIZE);
    let source = MemoryBlob::new(sample.blob.clone());
    let rig = Rig::paused(no_readahead(), LayerStoreConfig::default());
    let _time = rig.enter();
    let layer = rig.open(&sample, source.clone());
    for span in 0..3 {
        let at = layer.stored().spans().span(SpanId(span)).uncompressed.start;
        let reader = start(&layer, at, 1000);
        rig.pass(Duration::from_secs(1));
        let at = usize::try_from(at).unwrap();
        assert!(finish(&reader).unwrap() == sample.tar[at..at + 1000]);
    }
    assert_eq!(source.requests().len(), 3);
}

#[test]
fn whatever_becomes_of_a_half_the_reader_gets_the_truth() {
    let sample = Sample::gzip(100, SPAN_SIZE);
    let faults = [
        Fault::Fail(MemoryBlob::unreachable()),
        Fault::Fail(MemoryBlob::status(429)),
        Fault::Fail(MemoryBlob::status(404)),
        Fault::Truncate(0),
        Fault::Truncate(70_000),
        Fault::Truncate(300_000),
        Fault::Delay(Duration::from_millis(300)),
        Fault::Hang,
    ];
    for fault in faults {
        let source = MemoryBlob::new(sample.blob.clone());
        let rig = Rig::new(no_readahead());
        let layer = rig.open(&sample, Slow(source.clone()));
        read_in(&layer, &sample, &source, 0);
        // That for the first half is the one before.
        source.fault(2, fault.clone());
        let requests = read_in(&layer, &sample, &source, 1);
        assert!(requests.len() <= 4, "{fault:?}: {requests:?}");
        assert_eq!(layer.status().error, None, "{fault:?}");
        assert_eq!(rig.fetcher.stats().spans_failed, 0, "{fault:?}");
    }
}
