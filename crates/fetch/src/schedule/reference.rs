//! The schedule against a simple reference, without threads.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::circuit::FAILURES;
use super::origins::DEMAND_RESERVE;
use super::{
    Conditions, Effect, Health, Outcome, Request, RequestId, Schedule, ScheduleConfig, SpanLayout,
    WantResult,
};
use crate::ReadError;
use crate::priority::Priority;
use crate::read_error::Cause;
use crate::span_key::{LayerId, SpanKey};

/// Layers 0 and 1 come from one origin, 2 and 3 from another.
const LAYERS: u64 = 4;
const ORIGINS: u64 = 2;
const SPANS: u32 = 24;
const SPAN_SIZE: u64 = 1 << 20;
/// Background requests that may be in flight.
const BACKGROUND: usize = 2;
const CONFIG: ScheduleConfig = ScheduleConfig {
    max_inflight: 4,
    max_request_bytes: 16 << 20,
    read_timeout: Duration::from_secs(60),
    negative_backoff: Duration::from_millis(500),
};

#[derive(Debug, Clone)]
struct Blob {
    layer: LayerId,
    ignores_ranges: bool,
}

impl SpanLayout for Blob {
    fn compressed(&self, span: u32) -> Option<Range<u64>> {
        let start = u64::from(span) * SPAN_SIZE;
        (span < SPANS).then_some(start..start + SPAN_SIZE)
    }

    fn ignores_ranges(&self) -> bool {
        self.ignores_ranges
    }

    fn origin(&self) -> String {
        origin_of(self.layer).to_string()
    }

    fn origin_failing(&self, _: u32, _: &str, error: &Cause) -> ReadError {
        ReadError::Store(error.clone())
    }
}

fn origin_of(layer: LayerId) -> u64 {
    layer.0 * ORIGINS / LAYERS
}

fn unreachable() -> Cause {
    std::sync::Arc::new(std::io::Error::other("unreachable"))
}

/// One event. The indices of requests and arrived spans wrap around.
#[derive(Debug, Clone)]
enum Step {
    /// Neighbouring spans are wanted, the first of them and so many more.
    Want(SpanKey, u32, Priority),
    /// The next span of a request arrives; after the last one, the request ends.
    Receive(usize),
    /// An arrived span is verified and stored; a reader may join before it is stored.
    Deliver(usize, bool),
    /// An arrived span cannot be used.
    Damage(usize),
    Break(usize, Break),
    Close(LayerId),
    Advance(u64),
    Overload(LayerId),
    /// Some readers go away: those whose number leaves no rest.
    Leave(u32),
}

/// How a request breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Break {
    /// Another one may succeed.
    Transient,
    /// The origin refuses the blob.
    Refused,
    /// The origin does not answer.
    Unreachable,
}

fn key() -> impl Strategy<Value = SpanKey> {
    (0..LAYERS, 0..SPANS).prop_map(|(layer, span)| SpanKey {
        layer: LayerId(layer),
        span,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let priority = prop::sample::select(Priority::ALL.to_vec());
    prop_oneof![
        6 => (key(), priority.clone()).prop_map(|(key, priority)| Step::Want(key, 0, priority)),
        4 => (key(), 0..SPANS, priority)
            .prop_map(|(key, more, priority)| Step::Want(key, more, priority)),
        10 => any::<usize>().prop_map(Step::Receive),
        6 => (any::<usize>(), any::<bool>()).prop_map(|(which, late)| Step::Deliver(which, late)),
        1 => any::<usize>().prop_map(Step::Damage),
        4 => (any::<usize>(), how()).prop_map(|(which, how)| Step::Break(which, how)),
        1 => (0..LAYERS).prop_map(|layer| Step::Close(LayerId(layer))),
        3 => (0..100_000_u64).prop_map(Step::Advance),
        1 => (0..LAYERS).prop_map(|layer| Step::Overload(LayerId(layer))),
        2 => (1..4_u32).prop_map(Step::Leave),
    ]
}

fn how() -> impl Strategy<Value = Break> {
    prop_oneof![
        2 => Just(Break::Transient),
        1 => Just(Break::Refused),
        3 => Just(Break::Unreachable),
    ]
}

/// What the reference knows of a wanted span.
struct Expected {
    /// The most urgent priority for which it was wanted.
    priority: Priority,
    readers: Vec<u32>,
    /// When the first reader gives up.
    deadline: Option<Instant>,
    stage: Stage,
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Stage {
    Queue,
    Request(RequestId),
    Arrived,
}

struct Flight {
    request: Request<Blob>,
    next: u32,
    /// The end of its spans, or the span before which it was cut off.
    end: u32,
}

/// What the reference knows of an origin.
#[derive(Default)]
struct Source {
    last_arrival: Option<Instant>,
    /// Failures in a row.
    failures: u32,
    open: bool,
}

/// The schedule, and the reference beside it.
struct Pair {
    schedule: Schedule<Blob, u32>,
    now: Instant,
    origins: BTreeMap<u64, Source>,
    /// Layers whose last request failed because of their origin.
    failing: BTreeSet<LayerId>,
    quiet: bool,
    open: BTreeSet<LayerId>,
    stored: BTreeSet<SpanKey>,
    wanted: BTreeMap<SpanKey, Expected>,
    failed: BTreeMap<SpanKey, Instant>,
    flights: BTreeMap<RequestId, Flight>,
    next_reader: u32,
    answered: BTreeSet<u32>,
    /// Arrived spans that a reader came for since requests were started.
    hastened: Vec<SpanKey>,
}

impl Pair {
    fn new(ignores_ranges: bool) -> Self {
        let now = Instant::now();
        let mut schedule = Schedule::new(CONFIG);
        let open: BTreeSet<_> = (0..LAYERS).map(LayerId).collect();
        for layer in &open {
            let blob = Blob {
                layer: *layer,
                ignores_ranges,
            };
            assert!(schedule.add_layer(*layer, blob, now));
        }
        Self {
            schedule,
            now,
            origins: (0..ORIGINS).map(|id| (id, Source::default())).collect(),
            failing: BTreeSet::new(),
            quiet: true,
            open,
            stored: BTreeSet::new(),
            wanted: BTreeMap::new(),
            failed: BTreeMap::new(),
            flights: BTreeMap::new(),
            next_reader: 0,
            answered: BTreeSet::new(),
            hastened: Vec::new(),
        }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Want(key, more, priority) => {
                for span in key.span..=(key.span + more).min(SPANS - 1) {
                    self.want(SpanKey { span, ..*key }, *priority);
                }
            }
            Step::Receive(which) => self.receive(*which),
            Step::Deliver(which, late) => self.deliver(*which, *late),
            Step::Damage(which) => self.damage(*which),
            Step::Break(which, how) => self.end(*which, Some(*how)),
            Step::Close(layer) => self.close(*layer),
            Step::Advance(millis) => {
                self.now += Duration::from_millis(*millis);
                self.quiet = *millis > 30_000;
            }
            Step::Leave(every) => self.leave(*every),
            Step::Overload(layer) => self.schedule.overloaded(*layer, self.now),
        }
        self.start_requests();
    }

    fn want(&mut self, key: SpanKey, priority: Priority) {
        let reader = (priority == Priority::Demand).then_some(self.next_reader);
        self.next_reader += 1;
        self.quiet &= reader.is_none();
        let stored = self.stored.contains(&key);
        let before = self.schedule.priority(key);
        let result = self.schedule.want(key, priority, reader, stored, self.now);
        let remembered = self.failed.get(&key).is_some_and(|until| self.now < *until);
        match result {
            WantResult::Stored => {
                assert!(stored && !self.wanted.contains_key(&key));
                assert!(self.open.contains(&key.layer));
            }
            WantResult::Failed(ReadError::Closed) => assert!(!self.open.contains(&key.layer)),
            WantResult::Failed(ReadError::Store(_)) => {
                assert!(
                    self.origins[&origin_of(key.layer)].open,
                    "the circuit is closed"
                );
                assert!(
                    self.failing.contains(&key.layer),
                    "a layer that did not fail"
                );
                assert!(!stored && !self.wanted.contains_key(&key));
            }
            WantResult::Failed(_) => assert!(remembered && !stored),
            WantResult::Pending => {
                assert!(self.open.contains(&key.layer) && !remembered);
                assert!(!stored || self.wanted.contains_key(&key));
                let expected = self.wanted.entry(key).or_insert(Expected {
                    priority,
                    readers: Vec::new(),
                    deadline: None,
                    stage: Stage::Queue,
                });
                expected.priority = expected.priority.min(priority);
                let stage = expected.stage;
                if let Some(reader) = reader {
                    expected.readers.push(reader);
                    expected
                        .deadline
                        .get_or_insert(self.now + CONFIG.read_timeout);
                }
                if let Stage::Request(id) = stage
                    && before > Some(priority)
                {
                    self.cut_off(id, key, priority);
                }
                if stage == Stage::Arrived && reader.is_some() && before > Some(priority) {
                    self.hastened.push(key);
                }
                if priority == Priority::Demand {
                    self.cut_off_background();
                }
            }
        }
    }

    /// A request does not make a more urgent reader wait for more than a few MiB.
    fn cut_off(&mut self, id: RequestId, key: SpanKey, priority: Priority) {
        let flight = self.flights.get_mut(&id).expect("in flight");
        let distance = u64::from(key.span - flight.next) * SPAN_SIZE;
        if flight.request.priority > priority && distance >= super::TOO_FAR {
            for span in key.span..flight.end {
                let key = SpanKey { span, ..key };
                if let Some(expected) = self.wanted.get_mut(&key)
                    && expected.stage == Stage::Request(id)
                {
                    expected.stage = Stage::Queue;
                }
            }
            flight.end = key.span;
        }
    }

    /// Background requests end with the span that they bring, or that a reader waits for.
    fn cut_off_background(&mut self) {
        for (id, flight) in &mut self.flights {
            let request = &flight.request;
            if request.priority != Priority::Background || request.layer.ignores_ranges {
                continue;
            }
            let layer = request.layer.layer;
            let mut end = flight.next + 1;
            for span in flight.next..flight.end {
                let urgent = self
                    .wanted
                    .get(&SpanKey { layer, span })
                    .is_some_and(|expected| {
                        expected.stage == Stage::Request(*id)
                            && self.schedule.priority(SpanKey { layer, span })
                                < Some(Priority::Background)
                    });
                end = if urgent { end.max(span + 1) } else { end };
            }
            if u64::from(flight.end.saturating_sub(end)) * SPAN_SIZE < super::WORTH_A_CUT {
                continue;
            }
            for span in end..flight.end {
                if let Some(expected) = self.wanted.get_mut(&SpanKey { layer, span })
                    && expected.stage == Stage::Request(*id)
                {
                    expected.stage = Stage::Queue;
                }
            }
            flight.end = end;
        }
    }

    fn start_requests(&mut self) {
        let conditions = Conditions {
            now: self.now,
            background: if self.quiet { BACKGROUND } else { 0 },
        };
        let mut hastened = std::mem::take(&mut self.hastened).into_iter();
        for effect in self.schedule.start_requests(conditions) {
            match effect {
                Effect::Hasten(key) => assert_eq!(hastened.next(), Some(key)),
                Effect::Start(request) => self.check_start(request),
                Effect::Circuit(change) => assert!(change.opened.is_none()),
                other => panic!("{other:?} without an event"),
            }
        }
        assert_eq!(hastened.next(), None);
        assert_eq!(self.schedule.load().1, self.flights.len());
        let in_use =
            |id: u64| self.running(id) > 0 || self.open.iter().any(|layer| origin_of(*layer) == id);
        let open = self
            .origins
            .iter()
            .filter(|(id, origin)| origin.open && in_use(**id));
        assert_eq!(self.schedule.origins().1, open.count());
        self.check_idle();
    }

    fn running(&self, origin: u64) -> usize {
        let flights = self.flights.values();
        flights
            .filter(|flight| origin_of(flight.request.layer.layer) == origin)
            .count()
    }

    /// Whether an origin may have one more request, as far as the others are concerned.
    fn has_share(&self, origin: u64) -> bool {
        let slots = 2 * (CONFIG.max_inflight + DEMAND_RESERVE);
        let (running, all) = (self.running(origin), self.flights.len());
        running == 0 || running < slots.saturating_sub(all)
    }

    fn limit(&self, layer: LayerId) -> usize {
        let origin = self.schedule.layers[&layer].origin;
        self.schedule
            .origins
            .get(origin)
            .expect("known")
            .limit
            .get()
    }

    /// Whether a span of a layer must have been requested by now, unless it is background.
    fn could_start(&self, layer: LayerId, priority: Priority) -> bool {
        let origin = origin_of(layer);
        // Whether a probe is due is the matter of the circuit's own tests.
        let refused = self.origins[&origin].open && self.failing.contains(&layer);
        let most = match priority {
            Priority::Demand => self.limit(layer) + DEMAND_RESERVE,
            Priority::Readahead => self.limit(layer),
            _ => self.limit(layer) - 1,
        };
        let free = self.running(origin) < most;
        free && self.has_share(origin) && !refused
    }

    /// A span that waits although a request could be made is never left waiting.
    fn check_idle(&self) {
        let waiting = self.wanted.iter();
        for (key, expected) in waiting.filter(|(_, expected)| expected.stage == Stage::Queue) {
            let foreground = expected.priority < Priority::Background;
            if foreground {
                assert!(!self.could_start(key.layer, expected.priority), "{key:?}");
            }
            if self.flights.is_empty() && (self.quiet || foreground) {
                let refused = self.origins[&origin_of(key.layer)].open;
                assert!(refused && self.failing.contains(&key.layer), "{key:?}");
            }
        }
    }

    fn check_start(&mut self, request: Request<Blob>) {
        let layer = request.layer.layer;
        assert!(self.open.contains(&layer) && !request.spans.is_empty());
        let bytes = request.spans.len() as u64 * SPAN_SIZE;
        let most = match request.layer.ignores_ranges {
            true => CONFIG.max_request_bytes,
            false => CONFIG.max_request_bytes.min(8 << 20),
        };
        assert!(bytes <= most || request.spans.len() == 1);
        let mut earliest: Option<Instant> = None;
        for span in request.spans.clone() {
            let key = SpanKey { layer, span };
            let expected = self.wanted.get_mut(&key).expect("only wanted spans");
            assert_eq!(expected.stage, Stage::Queue, "{key:?} is fetched twice");
            expected.stage = Stage::Request(request.id);
            earliest = earliest.into_iter().chain(expected.deadline).min();
        }
        let origin = &self.origins[&origin_of(layer)];
        let moved = origin.last_arrival.map(|at| at + CONFIG.read_timeout);
        let expected = earliest.unwrap_or(self.now + CONFIG.read_timeout);
        let expected = expected.max(moved.unwrap_or(expected));
        if origin.open && self.failing.contains(&layer) {
            assert!(request.deadline <= expected, "a probe");
        } else {
            assert_eq!(request.deadline, expected);
        }
        assert!(self.has_share(origin_of(layer)), "more than its share");
        for (key, expected) in &self.wanted {
            let waits = expected.stage == Stage::Queue && expected.priority < request.priority;
            let could = waits && self.could_start(key.layer, expected.priority);
            assert!(!could, "something more urgent waits");
        }
        if request.priority == Priority::Background {
            let urgent = |flight: &Flight| flight.request.priority < Priority::Background;
            assert!(self.quiet && !self.flights.values().any(urgent));
            let origin = origin_of(layer);
            let others = self.flights.values();
            let others = others.filter(|flight| origin_of(flight.request.layer.layer) == origin);
            assert!(others.count() < BACKGROUND);
        }
        let flight = Flight {
            next: request.spans.start,
            end: request.spans.end,
            request,
        };
        self.flights.insert(flight.request.id, flight);
        let most = self.limit(layer) + DEMAND_RESERVE;
        assert!(self.running(origin_of(layer)) <= most);
    }

    fn flight(&self, which: usize) -> Option<RequestId> {
        let index = which.checked_rem(self.flights.len())?;
        self.flights.keys().nth(index).copied()
    }

    fn receive(&mut self, which: usize) {
        let Some(id) = self.flight(which) else { return };
        let Some(flight) = self.flights.get_mut(&id) else {
            return;
        };
        let (layer, span) = (flight.request.layer.layer, flight.next);
        let receiving = self.schedule.receiving(id, span);
        if receiving.is_none() {
            assert!(span >= flight.end || !self.open.contains(&layer));
            return self.end(which, None);
        }
        assert!(span < flight.end && self.open.contains(&layer));
        flight.next += 1;
        let origin = self.origins.entry(origin_of(layer)).or_default();
        *origin = Source {
            last_arrival: Some(self.now),
            ..Source::default()
        };
        self.failing.remove(&layer);
        let arrived = self.schedule.arrived(id, span, SPAN_SIZE, self.now);
        assert_eq!(arrived, receiving);
        let key = SpanKey { layer, span };
        let expected = self.wanted.get_mut(&key).expect("wanted");
        assert_eq!(expected.stage, Stage::Request(id));
        assert!(
            receiving <= Some(expected.priority),
            "less urgent than wanted"
        );
        expected.stage = Stage::Arrived;
    }

    fn arrived(&self, which: usize) -> Option<SpanKey> {
        let arrived = |(_, expected): &(&SpanKey, &Expected)| expected.stage == Stage::Arrived;
        let count = self.wanted.iter().filter(arrived).count();
        let index = which.checked_rem(count)?;
        self.wanted
            .iter()
            .filter(arrived)
            .nth(index)
            .map(|(key, _)| *key)
    }

    fn deliver(&mut self, which: usize, late: bool) {
        let Some(key) = self.arrived(which) else {
            return;
        };
        let waiters = self.schedule.take_waiters(key);
        self.answer(waiters, key);
        if late {
            self.want(key, Priority::Demand);
        }
        self.stored.insert(key);
        if late {
            let waiters = self.schedule.finish(key).expect("the reader that joined");
            self.answer(waiters, key);
        }
        assert_eq!(self.schedule.finish(key), None);
        self.wanted.remove(&key);
    }

    fn damage(&mut self, which: usize) {
        let Some(key) = self.arrived(which) else {
            return;
        };
        let error = ReadError::Abandoned;
        let effects = self.schedule.fail(key, error, self.now);
        self.check_failed(effects, &[key]);
    }

    /// Ends a request; `Some`: it broke.
    fn end(&mut self, which: usize, broken: Option<Break>) {
        let Some(id) = self.flight(which) else { return };
        let Some(flight) = self.flights.remove(&id) else {
            return;
        };
        let outcome = match broken {
            None => Outcome::Completed,
            Some(how) => Outcome::Broken {
                transient: how != Break::Refused,
                health: match how {
                    Break::Transient => Health::Unknown,
                    Break::Refused => Health::Answering,
                    Break::Unreachable => Health::Failing(unreachable()),
                },
                error: &|_| ReadError::Abandoned,
            },
        };
        let layer = flight.request.layer.layer;
        let origin = self.origins.entry(origin_of(layer)).or_default();
        let mut changes = 0;
        match broken {
            Some(Break::Unreachable) => {
                origin.failures += 1;
                changes = usize::from(!origin.open && origin.failures >= FAILURES);
                origin.open |= origin.failures >= FAILURES;
                if self.open.contains(&layer) {
                    self.failing.insert(layer);
                }
            }
            Some(Break::Refused) => {
                origin.failures = 0;
                changes = usize::from(std::mem::take(&mut origin.open));
                self.failing.remove(&layer);
            }
            Some(Break::Transient) | None => {}
        }
        let refused = origin.open;
        let mut effects = self.schedule.ended(id, &outcome, self.now);
        let is_change = |effect: &mut Effect<_, _>| matches!(effect, Effect::Circuit(_));
        assert_eq!(effects.extract_if(.., is_change).count(), changes);
        let mut given_up = Vec::new();
        for span in flight.next..flight.end {
            let key = SpanKey {
                layer: flight.request.layer.layer,
                span,
            };
            let Some(expected) = self.wanted.get_mut(&key) else {
                continue;
            };
            if expected.stage != Stage::Request(id) {
                continue;
            }
            let has_time = expected
                .deadline
                .is_some_and(|deadline| deadline > flight.request.deadline);
            match broken {
                Some(how) if how == Break::Refused || !has_time => given_up.push(key),
                _ => expected.stage = Stage::Queue,
            }
        }
        if refused {
            // Nothing that only a failing origin can bring is left waiting.
            let of_origin = |key: &SpanKey| origin_of(key.layer) == origin_of(layer);
            let queued = self.wanted.iter().filter(|(key, expected)| {
                expected.stage == Stage::Queue
                    && of_origin(key)
                    && self.failing.contains(&key.layer)
            });
            given_up.extend(queued.map(|(key, _)| *key));
        }
        self.check_failed(effects, &given_up);
    }

    /// Exactly these spans failed, each for all its readers.
    fn check_failed(&mut self, effects: Vec<Effect<Blob, u32>>, keys: &[SpanKey]) {
        assert_eq!(effects.len(), keys.len());
        for (effect, key) in effects.into_iter().zip(keys) {
            let Effect::Fail(failed) = effect else {
                panic!("not a failure: {effect:?}");
            };
            let has_readers = !failed.waiters.is_empty();
            let refused = matches!(failed.error, ReadError::Store(_));
            if !refused && (has_readers || failed.reported) {
                self.failed.insert(*key, self.now + CONFIG.negative_backoff);
            }
            self.answer(failed.waiters, *key);
            self.wanted.remove(key);
        }
    }

    /// Readers go away. What only they wanted is neither requested nor brought, unless it moves.
    fn leave(&mut self, every: u32) {
        let stays = |reader: &u32| !reader.is_multiple_of(every);
        let effects = self.schedule.abandon(stays, self.now);
        let mut gone = BTreeSet::new();
        let mut unwanted = Vec::new();
        for (key, expected) in &mut self.wanted {
            let before = expected.readers.len();
            gone.extend(
                expected
                    .readers
                    .iter()
                    .copied()
                    .filter(|reader| !stays(reader)),
            );
            expected.readers.retain(stays);
            let left = expected.readers.is_empty() && before > 0;
            if left && expected.stage == Stage::Queue {
                unwanted.push(*key);
            }
        }
        for key in unwanted {
            self.wanted.remove(&key);
        }
        for effect in effects {
            match effect {
                Effect::Forget(waiters) => {
                    assert!(!waiters.is_empty());
                    assert!(waiters.into_iter().all(|waiter| gone.remove(&waiter)));
                }
                Effect::Abort(id) => {
                    let flight = self.flights.remove(&id).expect("in flight");
                    assert_eq!(flight.request.priority, Priority::Demand);
                    let of_flight = |_: &SpanKey, expected: &mut Expected| {
                        let found = expected.stage == Stage::Request(id);
                        assert!(!found || expected.readers.is_empty(), "a reader is left");
                        !found
                    };
                    self.wanted.retain(of_flight);
                }
                other => panic!("{other:?} because readers left"),
            }
        }
        assert!(gone.is_empty(), "not forgotten: {gone:?}");
    }

    fn close(&mut self, layer: LayerId) {
        let effects = self.schedule.close(layer);
        self.open.remove(&layer);
        self.failing.remove(&layer);
        let mut aborted = Vec::new();
        for effect in effects {
            match effect {
                Effect::AnswerClosed(waiters) => {
                    let keys: Vec<_> = self.wanted.keys().copied().collect();
                    let mut expected = Vec::new();
                    for key in keys.into_iter().filter(|key| key.layer == layer) {
                        expected.extend(self.wanted.remove(&key).expect("wanted").readers);
                    }
                    assert_eq!(waiters, expected);
                    self.answered.extend(waiters);
                }
                Effect::Abort(id) => aborted.push(id),
                other => panic!("{other:?} because of a close"),
            }
        }
        aborted.sort();
        let flights = self.flights.iter();
        let expected: Vec<_> = flights
            .filter(|(_, flight)| flight.request.layer.layer == layer)
            .map(|(id, _)| *id)
            .collect();
        assert_eq!(aborted, expected);
    }

    /// Readers are answered in the order in which they came, each once.
    fn answer(&mut self, waiters: Vec<u32>, key: SpanKey) {
        let expected = self.wanted.get_mut(&key).expect("wanted");
        assert_eq!(waiters, std::mem::take(&mut expected.readers));
        for waiter in waiters {
            assert!(self.answered.insert(waiter), "answered twice");
        }
    }

    /// Whatever happened, everything ends once requests succeed.
    fn drain(&mut self) {
        self.quiet = true;
        // Long enough for a probe of each origin.
        self.now += Duration::from_secs(10);
        for _ in 0..10_000 {
            self.start_requests();
            if self.flights.is_empty() && self.wanted.is_empty() {
                break;
            }
            self.receive(0);
            self.deliver(0, false);
        }
        assert_eq!(self.schedule.load(), (0, 0));
        assert!(self.wanted.is_empty() && !self.schedule.has_background());
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_schedule_does_what_a_simple_reference_expects(
        ignores_ranges in any::<bool>(),
        steps in prop::collection::vec(step(), 0..200),
    ) {
        let mut pair = Pair::new(ignores_ranges);
        for step in &steps {
            pair.take(step);
        }
        pair.drain();
    }
}

#[test]
fn a_request_ends_when_the_first_of_its_readers_gives_up() {
    let mut pair = Pair::new(false);
    let key = |span| SpanKey {
        layer: LayerId(0),
        span,
    };
    // As many requests as there may be, for spans that are no neighbours.
    for span in (0..8).map(|number| number * 2) {
        pair.take(&Step::Want(key(span), 0, Priority::Demand));
    }
    assert_eq!(pair.flights.len(), pair.limit(LayerId(0)) + DEMAND_RESERVE);
    let begin = pair.now;
    pair.take(&Step::Advance(1000));
    pair.take(&Step::Want(key(20), 0, Priority::Demand));
    pair.take(&Step::Advance(10_000));
    pair.take(&Step::Want(key(21), 0, Priority::Demand));
    while pair.wanted[&key(20)].stage == Stage::Queue {
        pair.take(&Step::Break(0, Break::Refused));
    }
    let last = pair.flights.values().next_back().unwrap();
    assert_eq!(last.request.spans, 20..22);
    let first_reader = begin + Duration::from_secs(1);
    assert_eq!(last.request.deadline, first_reader + CONFIG.read_timeout);
}
