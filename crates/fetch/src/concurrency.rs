//! Interleavings of threads, chosen at random by shuttle: no reader is lost, whatever the order.
//!
//! `SHUTTLE_ITERATIONS` sets the number of schedules per test; a failure prints the one that led to
//! it.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use shuttle::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use shuttle::thread;
use tokio::time::Instant;

use crate::ReadError;
use crate::budget::Budget;
use crate::delivery::deliver;
use crate::pending_read::PendingRead;
use crate::priority::Priority;
use crate::read_error::Cause;
use crate::schedule::{
    Conditions, Effect, Health, Outcome, Schedule, ScheduleConfig, SpanLayout, WantResult,
};
use crate::span_key::{LayerId, OriginId, SpanKey};
use crate::sync::Mutex;

fn check(test: impl Fn() + Send + Sync + 'static) {
    let set = std::env::var("SHUTTLE_ITERATIONS").ok();
    let iterations = set.and_then(|text| text.parse().ok()).unwrap_or(300);
    shuttle::check_random(test, iterations);
}

const LAYER: LayerId = LayerId(0);
const KEY: SpanKey = SpanKey {
    layer: LAYER,
    span: 0,
};

#[test]
fn a_read_is_answered_once_by_its_last_part_or_by_the_first_failure() {
    check(|| {
        let answers = Arc::new(AtomicUsize::new(0));
        let counted = answers.clone();
        let done = move |answer: Result<Bytes, ReadError>| {
            counted.fetch_add(1, Ordering::SeqCst);
            match answer {
                Ok(bytes) => assert_eq!(bytes, "abcdef"),
                Err(error) => assert!(matches!(error, ReadError::Closed), "{error}"),
            }
        };
        let read = Arc::new(PendingRead::new(0, 6, None, Box::new(done)));
        let parts = [(0, "ab"), (2, "cd"), (4, "ef")].map(|(at, text)| {
            read.expect();
            let read = read.clone();
            thread::spawn(move || {
                read.fill(at, text.as_bytes());
                read.arrived();
            })
        });
        let closing = read.clone();
        let closer = thread::spawn(move || closing.fail(ReadError::Closed));
        read.arrived();
        drop(read);
        for part in parts {
            part.join().unwrap();
        }
        closer.join().unwrap();
        assert_eq!(answers.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn the_budget_is_never_exceeded_and_every_waiter_gets_its_turn() {
    check(|| {
        let budget = Budget::new(100);
        let used = Arc::new(AtomicU64::new(0));
        let takers = [
            (60, Priority::Demand, OriginId(0)),
            (70, Priority::Readahead, OriginId(1)),
            (30, Priority::Background, OriginId(0)),
        ];
        let takers = takers.map(|(bytes, priority, origin)| {
            let (budget, used) = (budget.clone(), used.clone());
            thread::spawn(move || {
                let permit =
                    shuttle::future::block_on(budget.acquire(bytes, priority, KEY, origin));
                let before = used.fetch_add(bytes, Ordering::SeqCst);
                assert!(before + bytes <= 100);
                thread::yield_now();
                used.fetch_sub(bytes, Ordering::SeqCst);
                drop(permit);
            })
        });
        let raising = budget.clone();
        let raiser = thread::spawn(move || raising.raise_priority(KEY, Priority::Demand));
        // A waiter that is dropped, before or after it was granted its bytes.
        let leaving = budget.clone();
        let leaver = thread::spawn(move || {
            let mut waiting = Box::pin(leaving.acquire(50, Priority::Demand, KEY, OriginId(1)));
            let now = futures::FutureExt::now_or_never(&mut waiting);
            thread::yield_now();
            drop((now, waiting));
        });
        for taker in takers {
            taker.join().unwrap();
        }
        raiser.join().unwrap();
        leaver.join().unwrap();
        assert_eq!(budget.usage().0, 0);
        assert!(!budget.has_waiters());
    });
}

/// A blob of one span.
#[derive(Clone)]
struct OneSpan;

impl SpanLayout for OneSpan {
    fn compressed(&self, span: u32) -> Option<Range<u64>> {
        (span == 0).then_some(0..10)
    }

    fn ignores_ranges(&self) -> bool {
        false
    }

    fn origin(&self) -> String {
        "registry.example".to_owned()
    }

    fn origin_failing(&self, _: u32, _: &str, error: &Cause) -> ReadError {
        ReadError::Store(error.clone())
    }
}

/// Counts the answers to one reader.
type Reader = Arc<AtomicUsize>;

struct Fetching {
    schedule: Mutex<Schedule<OneSpan, Reader>>,
    stored: AtomicBool,
    requests: AtomicUsize,
}

impl Fetching {
    fn new() -> Arc<Self> {
        let config = ScheduleConfig {
            max_inflight: 2,
            max_request_bytes: 100,
            read_timeout: Duration::from_secs(60),
            negative_backoff: Duration::ZERO,
        };
        let mut schedule = Schedule::new(config);
        schedule.add_layer(LAYER, OneSpan, Instant::now());
        Arc::new(Self {
            schedule: Mutex::new(schedule),
            stored: AtomicBool::new(false),
            requests: AtomicUsize::new(0),
        })
    }

    /// A thread that reads the span, and makes the request if it is the one to make it. The request
    /// breaks if `breaks`.
    fn reader(self: &Arc<Self>, breaks: bool) -> (Reader, thread::JoinHandle<()>) {
        let answers = Reader::default();
        let (fetching, to) = (self.clone(), answers.clone());
        let run = move || {
            let now = Instant::now();
            let result = {
                let mut schedule = fetching.schedule.lock();
                let stored = fetching.stored.load(Ordering::SeqCst);
                schedule.want(KEY, Priority::Demand, Some(to.clone()), stored, now)
            };
            if !matches!(result, WantResult::Pending) {
                answer(to);
            }
            fetching.start_requests(breaks);
        };
        (answers, thread::spawn(run))
    }

    fn start_requests(&self, breaks: bool) {
        let now = Instant::now();
        let conditions = Conditions { now, background: 2 };
        let effects = self.schedule.lock().start_requests(conditions);
        for effect in effects {
            let Effect::Start(request) = effect else {
                continue;
            };
            self.requests.fetch_add(1, Ordering::SeqCst);
            let receiving = self.schedule.lock().receiving(request.id, 0);
            let mut outcome = Outcome::Completed;
            if breaks {
                outcome = Outcome::Broken {
                    transient: true,
                    health: Health::Unknown,
                    error: &|_| ReadError::Abandoned,
                };
            } else if receiving.is_some() {
                let arrived = self.schedule.lock().arrived(request.id, 0, 10, now);
                if arrived.is_some() {
                    let store = || self.stored.store(true, Ordering::SeqCst);
                    deliver(&self.schedule, KEY, answer, store);
                }
            }
            let effects = self.schedule.lock().ended(request.id, &outcome, now);
            answer_all(effects);
        }
    }
}

fn answer(reader: Reader) {
    reader.fetch_add(1, Ordering::SeqCst);
}

fn answer_all(effects: Vec<Effect<OneSpan, Reader>>) {
    for effect in effects {
        match effect {
            Effect::Fail(failed) => failed.waiters.into_iter().for_each(answer),
            Effect::AnswerClosed(waiters) => waiters.into_iter().for_each(answer),
            Effect::Start(_)
            | Effect::Abort(_)
            | Effect::Hasten(_)
            | Effect::Forget(_)
            | Effect::Circuit(_) => {}
        }
    }
}

#[test]
fn readers_of_one_span_share_one_request_and_each_is_answered_once() {
    check(|| {
        let fetching = Fetching::new();
        let readers = [(); 3].map(|()| fetching.reader(false));
        let answers = readers.map(|(answers, thread)| {
            thread.join().unwrap();
            answers
        });
        for answers in answers {
            assert_eq!(answers.load(Ordering::SeqCst), 1);
        }
        assert_eq!(fetching.requests.load(Ordering::SeqCst), 1);
        assert_eq!(fetching.schedule.lock().load(), (0, 0));
        assert!(fetching.stored.load(Ordering::SeqCst));
    });
}

#[test]
fn every_reader_is_answered_once_although_requests_break_and_the_layer_closes() {
    check(|| {
        let fetching = Fetching::new();
        let readers = [true, false, false].map(|breaks| fetching.reader(breaks));
        let closing = fetching.clone();
        let closer = thread::spawn(move || {
            let effects = closing.schedule.lock().close(LAYER);
            answer_all(effects);
        });
        let answers = readers.map(|(answers, thread)| {
            thread.join().unwrap();
            answers
        });
        closer.join().unwrap();
        for answers in answers {
            assert_eq!(answers.load(Ordering::SeqCst), 1);
        }
        assert_eq!(fetching.schedule.lock().load(), (0, 0));
    });
}
