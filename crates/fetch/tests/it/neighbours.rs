//! A registry that misbehaves slows its own layers, and no others: readers of a healthy one beside it
//! are answered while those of the other still wait.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::{Rig, Sample, eventually, finish, quick, start};
use bytes::Bytes;
use futures::StreamExt as _;
use parking_lot::Mutex;
use soci_fetch::{FetchConfig, LayerData as _, LazyLayer, ReadError};
use soci_registry::testing::MemoryBlob;
use soci_registry::{BlobSource, ByteStream, Deadline, RegistryError};
use soci_store::LayerStoreConfig;
use soci_ztoc::SpanId;

/// How a registry behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Behaviour {
    Healthy,
    /// Takes requests and never responds.
    Silent,
    /// Responds, and sends a byte every two seconds.
    Trickling,
    /// 429 to every request.
    Throttling,
    /// Sends half a span, and breaks.
    Resetting,
    /// Responds ten seconds late.
    Late,
    /// Sends most of a span, and then a byte every two seconds.
    Holding,
}

const BAD: [Behaviour; 6] = [
    Behaviour::Silent,
    Behaviour::Trickling,
    Behaviour::Throttling,
    Behaviour::Resetting,
    Behaviour::Late,
    Behaviour::Holding,
];

/// A blob at a registry of its own.
#[derive(Clone)]
struct Hosted {
    host: String,
    blob: MemoryBlob,
    behaviour: Arc<Mutex<Behaviour>>,
    requests: Arc<AtomicUsize>,
    /// Bodies that have not ended.
    open: Arc<AtomicU64>,
}

impl Hosted {
    fn new(host: &str, sample: &Sample, behaviour: Behaviour) -> Self {
        Self {
            host: host.to_owned(),
            blob: MemoryBlob::new(sample.blob.clone()),
            behaviour: Arc::new(Mutex::new(behaviour)),
            requests: Arc::default(),
            open: Arc::default(),
        }
    }

    fn becomes(&self, behaviour: Behaviour) {
        *self.behaviour.lock() = behaviour;
    }
}

/// Counts a request while it lives.
struct Open(Arc<AtomicU64>);

impl Open {
    fn new(count: &Arc<AtomicU64>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The bytes at first, and then one every two seconds.
fn drip(bytes: Bytes, at_once: usize, open: Open) -> ByteStream {
    let first = bytes.slice(..at_once.min(bytes.len()));
    let rest = bytes.slice(first.len()..);
    let first = futures::stream::iter((!first.is_empty()).then_some(Ok(first)));
    let drops = futures::stream::unfold((rest, open), |(mut rest, open)| async {
        if rest.is_empty() {
            return None;
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        let drop = rest.split_to(1);
        Some((Ok(drop), (rest, open)))
    });
    first.chain(drops).boxed()
}

#[async_trait::async_trait]
impl BlobSource for Hosted {
    fn size(&self) -> u64 {
        self.blob.size()
    }

    async fn stream_range(
        &self,
        range: Range<u64>,
        deadline: Deadline,
    ) -> Result<ByteStream, RegistryError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let open = Open::new(&self.open);
        let behaviour = *self.behaviour.lock();
        let length = usize::try_from(range.end - range.start).unwrap();
        match behaviour {
            Behaviour::Healthy => {}
            Behaviour::Silent => {
                let never = deadline.limit(std::future::pending::<()>()).await;
                return Err(never.map_or_else(|_| MemoryBlob::unreachable(), |()| unreachable!()));
            }
            Behaviour::Throttling => return Err(MemoryBlob::status(429)),
            Behaviour::Late => tokio::time::sleep(Duration::from_secs(10)).await,
            Behaviour::Trickling | Behaviour::Holding => {
                let bytes = self.blob.read_range(range, deadline).await?;
                let at_once = match behaviour {
                    Behaviour::Holding => length.saturating_sub(1000),
                    _ => 0,
                };
                return Ok(drip(bytes, at_once, open));
            }
            Behaviour::Resetting => {
                let bytes = self.blob.read_range(range, deadline).await?;
                let half = bytes.slice(..length / 2);
                let broken = [Ok(half), Err(MemoryBlob::unreachable())];
                return Ok(futures::stream::iter(broken).boxed());
            }
        }
        self.blob.stream_range(range, deadline).await
    }

    fn describe(&self) -> String {
        format!("{}/image@{}", self.host, self.blob.describe())
    }
}

/// Starts a read of one byte in each span.
fn read_all_spans(layer: &LazyLayer) -> Vec<std::sync::mpsc::Receiver<Result<Bytes, ReadError>>> {
    let spans = layer.stored().spans();
    let ranges = (0..spans.len()).map(|span| spans.span(SpanId(span)).uncompressed);
    let ranges = ranges.filter(|range| !range.is_empty());
    ranges.map(|range| start(layer, range.start, 1)).collect()
}

fn largest_cost(rig: &Rig, sample: &Sample) -> u64 {
    let layer = rig.open(sample, MemoryBlob::new(sample.blob.clone()));
    let spans = layer.stored().spans();
    let length = |range: Range<u64>| range.end - range.start;
    let cost = |span| {
        let span = spans.span(SpanId(span));
        length(span.compressed) + length(span.uncompressed)
    };
    (0..spans.len()).map(cost).max().unwrap()
}

#[test]
fn readers_beside_a_registry_that_misbehaves_are_answered_as_if_it_were_not_there() {
    let bad_sample = Sample::gzip(60, 100_000);
    let sample = Sample::gzip(20, 100_000);
    let cost = largest_cost(&Rig::new(quick()), &bad_sample);
    for behaviour in BAD {
        // Below the size of a span, a few spans, and many.
        for budget in [cost / 2, cost * 4, cost * 100] {
            // A span larger than the budget takes all of it while its registry holds it. Prepare refuses
            // layers with spans above a quarter of it: lazy::provider shows it.
            if behaviour == Behaviour::Holding && budget < cost {
                continue;
            }
            let config = FetchConfig {
                memory_budget: budget,
                ..FetchConfig::default()
            };
            // Time stands still unless everything waits: what has to wait for the other registry shows.
            let rig = Rig::paused(config, LayerStoreConfig::default());
            let _time = rig.enter();
            let bad = rig.open(
                &bad_sample,
                Hosted::new("bad.example", &bad_sample, behaviour),
            );
            let waiting = read_all_spans(&bad);
            bad.prefetch(0..bad.stored().spans().len());
            rig.pass(Duration::from_secs(5));
            let healthy = Hosted::new("good.example", &sample, Behaviour::Healthy);
            let good = rig.open(&sample, healthy);
            let reads: Vec<_> = (0..sample.tar.len())
                .step_by(50_000)
                .map(|at| (at, start(&good, at as u64, 10)))
                .collect();
            expect_answers(
                &rig,
                &sample,
                &reads,
                &format!("{behaviour:?}, budget {budget}"),
            );
            drop(waiting);
        }
    }
}

/// A read of ten bytes, where they are in the tar.
type TenBytes = (usize, std::sync::mpsc::Receiver<Result<Bytes, ReadError>>);

/// Expects answers to reads of ten bytes within a second each of time that stands still.
fn expect_answers(rig: &Rig, sample: &Sample, reads: &[TenBytes], what: &str) {
    for (at, answers) in reads {
        let mut answer = None;
        for turn in 0..1000_u64 {
            rig.pass(Duration::from_millis(1));
            answer = answers.try_recv().ok();
            if answer.is_some() {
                break;
            }
            // Real time for the threads that inflate, two minutes in all on a machine that is so busy.
            std::thread::sleep(Duration::from_millis(turn.min(120)));
        }
        let what = format!("{what}, byte {at}");
        let bytes = answer.expect(&what).expect(&what);
        let end = sample.tar.len().min(at + 10);
        assert_eq!(bytes[..], sample.tar[*at..end], "{what}");
    }
}

/// One that misbehaves has as many requests as its own limit allows, which leaves some of all; several
/// together would have all.
#[test]
fn readers_beside_several_registries_that_misbehave_are_answered() {
    let bad_sample = Sample::gzip(60, 100_000);
    let sample = Sample::gzip(20, 100_000);
    let rig = Rig::paused(FetchConfig::default(), LayerStoreConfig::default());
    let _time = rig.enter();
    let most = FetchConfig::default().max_inflight as u64;
    let mut bad = Vec::new();
    for (number, behaviour) in [
        Behaviour::Silent,
        Behaviour::Silent,
        Behaviour::Silent,
        Behaviour::Silent,
        Behaviour::Late,
        Behaviour::Trickling,
    ]
    .into_iter()
    .enumerate()
    {
        let host = format!("bad{number}.example");
        let layer = rig.open(&bad_sample, Hosted::new(&host, &bad_sample, behaviour));
        let waiting = read_all_spans(&layer);
        bad.push((layer, waiting));
    }
    rig.pass(Duration::from_secs(5));
    let running = rig.fetcher.stats().requests_in_flight;
    assert!(running > most, "{running} requests to those that misbehave");
    let healthy = Hosted::new("good.example", &sample, Behaviour::Healthy);
    let good = rig.open(&sample, healthy.clone());
    let reads: Vec<_> = (0..sample.tar.len())
        .step_by(50_000)
        .map(|at| (at, start(&good, at as u64, 10)))
        .collect();
    rig.pass(Duration::from_secs(1));
    let requests = healthy.requests.load(Ordering::Relaxed);
    assert!(requests > 0, "no request to the registry that answers");
    expect_answers(&rig, &sample, &reads, "beside six others");
    drop(bad);
}

/// A body that trickles is not a reason to wait for ever, nor to hold a request and memory.
#[test]
fn a_body_that_trickles_is_requested_again_and_ends_in_an_error() {
    let sample = Sample::gzip(10, 100_000);
    for behaviour in [Behaviour::Trickling, Behaviour::Holding] {
        let config = FetchConfig {
            max_readahead: 0,
            ..FetchConfig::default()
        };
        let rig = Rig::paused(config, LayerStoreConfig::default());
        let _time = rig.enter();
        let source = Hosted::new("slow.example", &sample, behaviour);
        let layer = rig.open(&sample, source.clone());
        let answers = start(&layer, 0, 10);
        rig.pass(Duration::from_secs(20));
        assert!(source.requests.load(Ordering::Relaxed) > 1, "{behaviour:?}");
        if behaviour == Behaviour::Trickling {
            // One second less than the deadline, then one more.
            rig.pass(Duration::from_secs(39));
            assert!(answers.try_recv().is_err());
            rig.pass(Duration::from_secs(30));
            let error = finish(&answers).unwrap_err();
            assert!(matches!(error, ReadError::Source { .. }), "{error}");
        } else {
            // What is missing after the first request is little: the second one brings most of it.
            eventually("answered", || {
                rig.pass(Duration::from_secs(1));
                rig.fetcher.stats().requests_in_flight == 0
            });
        }
        rig.pass(Duration::from_secs(1));
        assert_eq!(rig.fetcher.stats().requests_in_flight, 0);
        assert_eq!(rig.fetcher.stats().memory_in_use, 0);
        assert_eq!(source.open.load(Ordering::Relaxed), 0);
    }
}

/// A registry that does not answer costs its readers one wait, not one each.
#[test]
fn an_origin_that_fails_is_left_alone_until_it_answers_again() {
    let sample = Sample::gzip(60, 20_000);
    let rig = Rig::paused(
        FetchConfig {
            max_readahead: 0,
            ..FetchConfig::default()
        },
        LayerStoreConfig::default(),
    );
    let _time = rig.enter();
    let source = Hosted::new("down.example", &sample, Behaviour::Silent);
    let layer = rig.open(&sample, source.clone());
    let waiting = read_all_spans(&layer);
    rig.pass(Duration::from_millis(60_500));
    for answers in waiting {
        assert!(answers.try_recv().expect("an answer").is_err());
    }
    assert_eq!(rig.fetcher.stats().origins_failing, 1);
    let requests = source.requests.load(Ordering::Relaxed);
    let answer = start(&layer, 0, 10).try_recv().expect("immediately");
    let error = answer.unwrap_err().to_string();
    assert!(
        error.contains("down.example failed several times"),
        "{error}"
    );
    assert_eq!(source.requests.load(Ordering::Relaxed), requests);

    // Other registries, and layers of this one that have not failed, do not suffer.
    let other_sample = Sample::gzip(5, 20_000);
    let other = Hosted::new("down.example", &other_sample, Behaviour::Healthy);
    source.becomes(Behaviour::Healthy);
    rig.pass(Duration::from_secs(6));
    let probe = start(&layer, 0, 10);
    eventually("probed", || {
        rig.pass(Duration::from_millis(1));
        rig.fetcher.stats().origins_failing == 0
    });
    eventually("answered", || {
        rig.pass(Duration::from_millis(1));
        rig.fetcher.stats().memory_in_use == 0
    });
    assert_eq!(finish(&probe).unwrap(), sample.tar[..10]);
    let other = rig.open(&other_sample, other);
    let answers = start(&other, 0, 10);
    eventually("answered", || {
        rig.pass(Duration::from_millis(1));
        rig.fetcher.stats().requests_in_flight == 0
    });
    assert_eq!(finish(&answers).unwrap(), other_sample.tar[..10]);
}

/// A reader that goes away takes its request with it, and its memory; others keep theirs.
#[test]
fn a_request_without_readers_is_given_up() {
    let sample = Sample::gzip(30, 20_000);
    let rig = Rig::paused(
        FetchConfig {
            max_readahead: 0,
            ..FetchConfig::default()
        },
        LayerStoreConfig::default(),
    );
    let _time = rig.enter();
    for behaviour in [Behaviour::Silent, Behaviour::Trickling] {
        let source = Hosted::new("slow.example", &sample, behaviour);
        let layer = rig.open(&sample, source.clone());
        let waits = Arc::new(AtomicUsize::new(1));
        let spans = layer.stored().spans().len();
        let at = |span| layer.stored().spans().span(SpanId(span)).uncompressed.start;
        let read_while = |span| {
            let (waits, (send, answers)) = (waits.clone(), std::sync::mpsc::channel());
            let wanted = move || waits.load(Ordering::Relaxed) > 0;
            let done = move |answer| send.send(answer).unwrap_or_default();
            layer.read_while(at(span), 1, Box::new(wanted), Box::new(done));
            answers
        };
        let gone: Vec<_> = (0..spans).step_by(2).map(read_while).collect();
        let stays = start(&layer, at(1), 1);
        rig.pass(Duration::from_secs(5));
        let before = rig.fetcher.stats();
        assert!(
            before.requests_in_flight > 1 && before.queued_spans > 1,
            "{before:?}"
        );
        waits.store(0, Ordering::Relaxed);
        rig.pass(Duration::from_secs(2));
        let after = rig.fetcher.stats();
        assert_eq!((after.requests_in_flight, after.queued_spans), (1, 0));
        assert!(gone.iter().all(|answers| answers.try_recv().is_ok()));
        assert!(stays.try_recv().is_err());
        // A new reader of what was given up starts again.
        source.becomes(Behaviour::Healthy);
        let again = start(&layer, at(0), 1);
        eventually("answered", || {
            rig.pass(Duration::from_millis(1));
            rig.fetcher.stats().requests_in_flight == 1
        });
        assert_eq!(finish(&again).unwrap().len(), 1);
        layer.close();
    }
}

/// One tenant's broken repository opens the circuit of the registry that all share.
#[test]
fn a_layer_that_did_not_fail_is_read_although_its_origin_fails_for_others() {
    let bad_sample = Sample::gzip(30, 20_000);
    let sample = Sample::gzip(20, 20_000);
    let config = FetchConfig {
        max_readahead: 0,
        ..quick()
    };
    let rig = Rig::paused(config, LayerStoreConfig::default());
    let _time = rig.enter();
    let bad = Hosted::new("shared.example", &bad_sample, Behaviour::Silent);
    let bad = rig.open(&bad_sample, bad);
    let waiting = read_all_spans(&bad);
    rig.pass(Duration::from_millis(60_500));
    for answers in waiting {
        answers.try_recv().expect("an answer").unwrap_err();
    }
    assert_eq!(rig.fetcher.stats().origins_failing, 1);
    let good = Hosted::new("shared.example", &sample, Behaviour::Healthy);
    let good = rig.open(&sample, good);
    let answers = start(&good, 0, 10);
    eventually("answered", || {
        rig.pass(Duration::from_millis(1));
        let stats = rig.fetcher.stats();
        stats.requests_in_flight == 0 && stats.memory_in_use == 0
    });
    assert_eq!(finish(&answers).unwrap(), sample.tar[..10]);
    assert_eq!(rig.fetcher.stats().origins_failing, 0);
}
