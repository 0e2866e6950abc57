//! Start-up profiles: played through real layers, in their order, in short requests, and
//! without readahead beside them.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::support::{Rig, Sample, eventually, quick, read};
use parking_lot::Mutex;
use soci_fetch::{
    FetchConfig, LayerData as _, LazyLayer, Playback, PlayedLayer, ProfileSpan, ReadLog, StartId,
};
use soci_registry::testing::MemoryBlob;
use soci_registry::{BlobSource, ByteStream, Deadline, RegistryError};
use soci_ztoc::SpanId;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// A layer of a playback, as the daemon has it.
struct Open {
    start: StartId,
    layer: Arc<LazyLayer>,
    log: Arc<ReadLog>,
}

impl PlayedLayer for Open {
    fn size(&self, span: u32) -> Option<u64> {
        let span = self.layer.stored().spans().get(SpanId(span))?;
        Some(span.compressed.end - span.compressed.start)
    }
    fn is_stored(&self, span: u32) -> bool {
        self.layer.stored().has(SpanId(span))
    }
    fn length(&self, _: u32) -> u64 {
        0
    }

    fn room(&self) -> u64 {
        u64::MAX
    }
    fn was_read(&self, span: u32) -> bool {
        self.log.was_read(span)
    }
    fn link_rate(&self) -> Option<u64> {
        self.layer.link_rate()
    }
    fn fetch(&self, spans: &[u32]) {
        self.layer.prefetch_each(spans, self.start);
    }
}

#[test]
fn a_recorded_start_is_played_and_then_needs_no_request() {
    let samples = [Sample::gzip(40, 50_000), Sample::gzip(30, 50_000)];
    let record = Rig::new(quick());
    let mut spans = Vec::new();
    let mut truth = Vec::new();
    let start = StartId::unique();
    let open = |rig: &Rig, sample: &Sample, source: &MemoryBlob| {
        let layer = rig.open(sample, source.clone());
        let log = layer.log_reads();
        Open { start, layer, log }
    };
    let sources = samples.each_ref().map(|s| MemoryBlob::new(s.blob.clone()));
    let layers = [0, 1].map(|n| open(&record, &samples[n], &sources[n]));
    // A start that jumps about in both layers.
    for at in [2_500_000, 10, 1_200_000, 700_000] {
        for (number, layer) in layers.iter().enumerate() {
            let end = at + 60_000;
            let got = read(&layer.layer, at as u64, end - at).unwrap();
            assert!(got == samples[number].tar[at..end]);
            truth.push((number, at));
        }
    }
    for (number, layer) in layers.iter().enumerate() {
        let reads = layer.log.first_reads().into_iter();
        spans.extend(reads.map(|(span, at)| (at, number, span)));
    }
    spans.sort_unstable();
    assert!(spans.len() > 8);

    let rig = Rig::new(quick());
    let sources = samples.each_ref().map(|s| MemoryBlob::new(s.blob.clone()));
    let layers = [0, 1].map(|n| Some(open(&rig, &samples[n], &sources[n])));
    let order = spans.iter().map(|(_, layer, span)| ProfileSpan {
        layer: *layer,
        span: *span,
    });
    let mut play = Playback::new(order);
    eventually("played", || rig.fetcher.stats().requests_in_flight == 0);
    for layer in layers.iter().flatten() {
        layer.layer.set_playing(true);
    }
    let mut ended = false;
    for _ in 0..6000 {
        ended = play.step(&layers, None, Instant::now()).ended;
        if ended {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(ended);
    let requests = || sources.iter().map(|s| s.requests().len()).sum::<usize>();
    let before = requests();
    let demand = rig.fetcher.stats().demand.requests;
    for (number, at) in truth {
        let layer = layers[number].as_ref().unwrap();
        let mut got = vec![0; 60_000];
        assert!(layer.layer.try_read(at as u64, &mut got).unwrap(), "stored");
        assert!(got == samples[number].tar[at..at + 60_000]);
    }
    assert_eq!(requests(), before);
    let stats = rig.fetcher.stats();
    assert_eq!(
        (demand, stats.demand.requests, stats.readahead.requests),
        (0, 0, 0)
    );
    assert!(stats.profile.bytes > 0);
    let played = play.step(&layers, None, Instant::now());
    assert_eq!(played.bytes, stats.profile.bytes);
}

/// The profile knew what a start reads: who finds everything is not known to need more.
#[test]
fn after_a_profile_only_a_reader_that_waits_is_fetched_ahead_of() {
    const PIECE: usize = 100_000;
    let sample = Sample::gzip(60, 100_000);
    let rig = Rig::new(quick());
    let layer = rig.open(&sample, MemoryBlob::new(sample.blob.clone()));
    let spans = layer.stored().spans();
    let played = spans.len() / 2;
    layer.set_playing(true);
    layer.prefetch(0..played);
    let is_stored = |span: u32| layer.stored().has(SpanId(span));
    eventually("played", || (0..played).all(is_stored));
    layer.set_playing(false);
    let end = spans.span(SpanId(played)).uncompressed.start;
    let end = usize::try_from(end).unwrap();
    let mut piece = vec![0; PIECE];
    for at in (0..end - PIECE).step_by(PIECE) {
        assert!(layer.try_read(at as u64, &mut piece).unwrap(), "stored");
    }
    assert_eq!(rig.fetcher.stats().readahead.requests, 0);
    for at in (end..end + 3 * PIECE).step_by(PIECE) {
        assert!(read(&layer, at as u64, PIECE).unwrap() == sample.tar[at..at + PIECE]);
    }
    eventually("readahead", || rig.fetcher.stats().readahead.requests > 0);
}

/// A blob of an image at a registry that all of them share: it answers when it may, and notes what was
/// requested.
struct OfImage {
    image: usize,
    blob: MemoryBlob,
    may_answer: Arc<Semaphore>,
    /// Images and bytes of the requests, in their order.
    requested: Arc<Mutex<Vec<(usize, u64)>>>,
}

#[async_trait::async_trait]
impl BlobSource for OfImage {
    fn size(&self) -> u64 {
        self.blob.size()
    }

    async fn stream_range(
        &self,
        range: Range<u64>,
        deadline: Deadline,
    ) -> Result<ByteStream, RegistryError> {
        let bytes = range.end - range.start;
        self.requested.lock().push((self.image, bytes));
        drop(self.may_answer.acquire().await);
        self.blob.stream_range(range, deadline).await
    }

    fn describe(&self) -> String {
        self.blob.describe()
    }

    fn origin(&self) -> String {
        "registry".to_owned()
    }
}

/// An image of four layers and one of one layer, played at the same time over the same link.
#[test]
fn images_that_are_played_at_the_same_time_share_the_link_whatever_the_number_of_their_layers() {
    const MANY: usize = 0;
    const ONE: usize = 1;
    let rig = Rig::new(FetchConfig {
        max_inflight: 2,
        max_request_bytes: 1,
        ..quick()
    });
    let (may_answer, requested) = (Arc::new(Semaphore::new(0)), Arc::default());
    let starts = [StartId::unique(), StartId::unique()];
    let open = |files: u32, image: usize| {
        let sample = Sample::gzip(files, 50_000);
        let source = OfImage {
            image,
            blob: MemoryBlob::new(sample.blob.clone()),
            may_answer: Arc::clone(&may_answer),
            requested: Arc::clone(&requested),
        };
        (rig.open(&sample, source), starts[image])
    };
    let layers = [(8, MANY), (9, MANY), (10, MANY), (11, MANY), (12, ONE)];
    let layers = layers.map(|(files, image)| open(files, image));
    for (layer, start) in &layers {
        let spans: Vec<u32> = (0..layer.stored().spans().len()).collect();
        layer.prefetch_each(&spans, *start);
    }
    may_answer.add_permits(Semaphore::MAX_PERMITS);
    eventually("fetched", || {
        layers.iter().all(|(layer, _)| layer.stored().is_complete())
    });

    let (mut bytes, mut largest) = ([0_u64; 2], 0);
    let requested = requested.lock();
    let last = requested
        .iter()
        .rposition(|(image, _)| *image == ONE)
        .unwrap();
    for (image, size) in &requested[..=last] {
        bytes[*image] += size;
        largest = largest.max(*size);
    }
    // The first request was made before the other image wanted anything.
    let difference = bytes[MANY].abs_diff(bytes[ONE]);
    assert!(
        difference <= 2 * largest,
        "{bytes:?}, at most {largest} at a time"
    );
    assert!(bytes[ONE] > 10 * largest, "{bytes:?}: too few requests");
}
