//! Which spans are wanted, by whom, how urgently, and which request is next. Pure bookkeeping: it is
//! behind one lock, never waits, and calls nobody.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use tokio::task::AbortHandle;
use ztoc::SpanId;

use crate::ReadError;
use crate::layer::Layer;
use crate::limit::Limit;
use crate::pending_read::PendingRead;
use crate::priority::{PerPriority, Priority};

/// One response is slower than the link, so what readers wait for is split into parts of this size.
const URGENT_PART: u64 = 8 << 20;
/// Requests that demand may have beyond the limit.
const DEMAND_RESERVE: usize = 2;
/// A span this far behind what a less urgent request is receiving is taken out of that request, in
/// compressed bytes.
const TOO_FAR: u64 = 4 << 20;
/// How often a span that a reader waits for is requested.
const ATTEMPTS: u32 = 3;

pub(crate) type Waiters = Vec<Arc<PendingRead>>;

/// What is wanted.
pub(crate) struct Schedule {
    layers: HashMap<u64, LayerQueue>,
    /// Spans in the order in which they were asked for; entries may be outdated.
    queues: PerPriority<VecDeque<(u64, u32)>>,
    requests: HashMap<u64, Running>,
    next_request: u64,
    pub(crate) limit: Limit,
    max_request_bytes: u64,
    pub(crate) stopped: bool,
}

struct LayerQueue {
    layer: Arc<Layer>,
    wanted: BTreeMap<u32, Wanted>,
    /// Spans that failed, until when, and why.
    failed: HashMap<u32, (Instant, ReadError)>,
}

struct Wanted {
    priority: Priority,
    stage: Stage,
    waiters: Waiters,
    attempts: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Queued,
    Requested(u64),
    Arrived,
}

struct Running {
    layer: u64,
    priority: Priority,
    /// The spans that are still to come.
    left: Range<u32>,
    abort: Option<AbortHandle>,
}

/// A request to be made.
pub(crate) struct Request {
    pub(crate) id: u64,
    pub(crate) layer: Arc<Layer>,
    pub(crate) priority: Priority,
    pub(crate) spans: Range<u32>,
}

/// What became of a wish.
pub(crate) enum Wish {
    /// It is here now.
    Here,
    /// It will come.
    Coming,
    /// It failed a moment ago.
    Failed(ReadError),
}

impl Schedule {
    pub(crate) fn new(max_inflight: usize, max_request_bytes: u64) -> Self {
        Self {
            layers: HashMap::new(),
            queues: PerPriority::default(),
            requests: HashMap::new(),
            next_request: 0,
            limit: Limit::new(max_inflight, Instant::now()),
            max_request_bytes: max_request_bytes.max(1),
            stopped: false,
        }
    }

    pub(crate) fn add_layer(&mut self, layer: Arc<Layer>) {
        let queue = LayerQueue {
            layer: layer.clone(),
            wanted: BTreeMap::new(),
            failed: HashMap::new(),
        };
        self.layers.insert(layer.number, queue);
    }

    /// Asks for a span.
    pub(crate) fn want(
        &mut self,
        layer: &Layer,
        span: u32,
        priority: Priority,
        waiter: Option<&Arc<PendingRead>>,
    ) -> Wish {
        let Some(queue) = self.layers.get_mut(&layer.number) else {
            return Wish::Failed(ReadError::Closed);
        };
        // Under the lock: who stores a span takes it off the list, under the lock, only afterwards.
        if layer.stored.has(SpanId(span)) && !queue.wanted.contains_key(&span) {
            return Wish::Here;
        }
        if let Some((until, error)) = queue.failed.get(&span) {
            if Instant::now() < *until {
                return Wish::Failed(error.clone());
            }
            queue.failed.remove(&span);
        }
        let wanted = queue.wanted.entry(span).or_insert_with(|| {
            self.queues
                .get_mut(priority)
                .push_back((layer.number, span));
            Wanted {
                priority,
                stage: Stage::Queued,
                waiters: Vec::new(),
                attempts: 0,
            }
        });
        if let Some(waiter) = waiter {
            waiter.expect();
            wanted.waiters.push(waiter.clone());
        }
        if priority < wanted.priority {
            wanted.priority = priority;
            match wanted.stage {
                Stage::Queued => self
                    .queues
                    .get_mut(priority)
                    .push_back((layer.number, span)),
                Stage::Requested(request) => self.hasten(layer, request, span, priority),
                Stage::Arrived => {}
            }
        }
        Wish::Coming
    }

    /// A span became urgent that a less urgent request will bring. If that takes long, the request is
    /// cut off before it, and what was cut off is queued again.
    fn hasten(&mut self, layer: &Layer, id: u64, span: u32, priority: Priority) {
        let Some(request) = self.requests.get_mut(&id) else {
            return;
        };
        let start = |span| {
            layer
                .spans
                .get(SpanId(span))
                .map_or(0, |span| span.compressed.start)
        };
        let distance = start(span).saturating_sub(start(request.left.start));
        if request.priority <= priority || distance < TOO_FAR {
            return;
        }
        let cut_off = span..request.left.end;
        request.left.end = span;
        let Some(queue) = self.layers.get_mut(&layer.number) else {
            return;
        };
        for (span, wanted) in queue.wanted.range_mut(cut_off) {
            if wanted.stage == Stage::Requested(id) {
                wanted.stage = Stage::Queued;
                self.queues
                    .get_mut(wanted.priority)
                    .push_back((layer.number, *span));
            }
        }
    }

    /// The next request to make, if one may be made.
    pub(crate) fn next_request(&mut self, background_allowed: bool) -> Option<Request> {
        if self.stopped {
            return None;
        }
        let limit = self.limit.get();
        let running = self.requests.len();
        let in_background = self.running(Priority::Background);
        let urgent = self.running(Priority::Demand) + self.running(Priority::Readahead);
        for priority in Priority::ALL {
            let Some((number, first)) = self.front(priority) else {
                continue;
            };
            let free = match priority {
                Priority::Demand => running < limit + DEMAND_RESERVE,
                Priority::Readahead => running < limit,
                Priority::Profile => running < limit - 1,
                Priority::Background => {
                    background_allowed
                        && urgent == 0
                        && running < limit
                        && in_background < (limit / 2).max(1)
                }
            };
            if !free {
                if priority != Priority::Background {
                    self.limit.waited();
                }
                return None;
            }
            self.queues.get_mut(priority).pop_front();
            return self.take(number, first, priority);
        }
        None
    }

    fn running(&self, priority: Priority) -> usize {
        self.requests
            .values()
            .filter(|request| request.priority == priority)
            .count()
    }

    /// The first span that waits with this priority.
    fn front(&mut self, priority: Priority) -> Option<(u64, u32)> {
        let queue = self.queues.get_mut(priority);
        while let Some((number, span)) = queue.front().copied() {
            let waits = self
                .layers
                .get(&number)
                .and_then(|layer| layer.wanted.get(&span));
            if waits.is_some_and(|w| w.stage == Stage::Queued && w.priority == priority) {
                return Some((number, span));
            }
            queue.pop_front();
        }
        None
    }

    /// Makes a request of a span and its neighbours that wait too.
    fn take(&mut self, number: u64, first: u32, priority: Priority) -> Option<Request> {
        let queue = self.layers.get_mut(&number)?;
        let layer = queue.layer.clone();
        let most = if priority >= Priority::Profile || layer.source.ignores_ranges() {
            self.max_request_bytes
        } else {
            self.max_request_bytes.min(URGENT_PART)
        };
        let end_of_first = layer.spans.get(SpanId(first))?.compressed.end;
        // Those before it that are as urgent: the order in which they were asked for says little.
        let mut first = first;
        while let Some(before) = first.checked_sub(1) {
            let start = layer.spans.get(SpanId(before))?.compressed.start;
            let waits = queue.wanted.get(&before);
            let joins = waits.is_some_and(|w| w.stage == Stage::Queued && w.priority <= priority);
            if !joins || end_of_first.saturating_sub(start) > most {
                break;
            }
            first = before;
        }
        let start = layer.spans.get(SpanId(first))?.compressed.start;
        let id = self.next_request;
        self.next_request += 1;
        let mut end = first;
        for (span, wanted) in queue.wanted.range_mut(first..) {
            // What nobody waits for does not make others wait.
            let joins = *span == end
                && wanted.stage == Stage::Queued
                && (wanted.priority < Priority::Background || priority == Priority::Background);
            let until = layer.spans.get(SpanId(*span))?.compressed.end;
            if !joins || (*span > first && until.saturating_sub(start) > most) {
                break;
            }
            wanted.stage = Stage::Requested(id);
            end += 1;
        }
        let spans = first..end;
        let running = Running {
            layer: number,
            priority,
            left: spans.clone(),
            abort: None,
        };
        self.requests.insert(id, running);
        Some(Request {
            id,
            layer,
            priority,
            spans,
        })
    }

    pub(crate) fn started(&mut self, request: u64, abort: AbortHandle) {
        let Some(request) = self.requests.get_mut(&request) else {
            return;
        };
        if self.layers.contains_key(&request.layer) {
            request.abort = Some(abort);
        } else {
            // Closed in between.
            abort.abort();
        }
    }

    /// Is the request still to bring this span? If so, with which priority?
    pub(crate) fn receiving(&mut self, request: u64, span: u32) -> Option<Priority> {
        let running = self.requests.get_mut(&request)?;
        if span >= running.left.end {
            return None;
        }
        running.left.start = span;
        let wanted = self.layers.get(&running.layer)?.wanted.get(&span)?;
        (wanted.stage == Stage::Requested(request)).then_some(wanted.priority)
    }

    /// The request has brought a span; answers with its priority.
    pub(crate) fn arrived(&mut self, request: u64, span: u32, bytes: u64) -> Option<Priority> {
        self.limit.received(bytes, Instant::now());
        let running = self.requests.get_mut(&request)?;
        running.left.start = span.saturating_add(1);
        let wanted = self.layers.get_mut(&running.layer)?.wanted.get_mut(&span)?;
        wanted.stage = Stage::Arrived;
        Some(wanted.priority)
    }

    /// The request is over. Spans that it has not brought are asked for again where a reader waits and
    /// that makes sense, and given up otherwise: those that somebody waits for are returned, and
    /// remembered as failed until `until`.
    pub(crate) fn ended(
        &mut self,
        request: u64,
        broken: Option<Broken<'_>>,
        until: Instant,
    ) -> Vec<Failed> {
        let Some(running) = self.requests.remove(&request) else {
            return Vec::new();
        };
        let Some(queue) = self.layers.get_mut(&running.layer) else {
            return Vec::new();
        };
        let left: Vec<u32> = queue
            .wanted
            .range(running.left.clone())
            .filter(|(_, wanted)| wanted.stage == Stage::Requested(request))
            .map(|(span, _)| *span)
            .collect();
        let mut given_up = Vec::new();
        for span in left {
            let Some(wanted) = queue.wanted.get_mut(&span) else {
                continue;
            };
            let blamed = broken
                .as_ref()
                .is_some_and(|broken| !broken.progress || span == running.left.start);
            wanted.attempts += u32::from(blamed);
            let again = broken.as_ref().is_none_or(|broken| broken.transient)
                && wanted.attempts < ATTEMPTS
                && (!wanted.waiters.is_empty() || !blamed);
            if again {
                wanted.stage = Stage::Queued;
                self.queues
                    .get_mut(wanted.priority)
                    .push_back((running.layer, span));
                continue;
            }
            let waiters = queue
                .wanted
                .remove(&span)
                .map(|wanted| wanted.waiters)
                .unwrap_or_default();
            if !waiters.is_empty() {
                let error = broken
                    .as_ref()
                    .map_or(ReadError::Abandoned, |broken| (broken.error)(span));
                queue.failed.insert(span, (until, error.clone()));
                given_up.push(Failed { error, waiters });
            }
        }
        given_up
    }

    /// Takes who waits for a span that has arrived.
    pub(crate) fn take_waiters(&mut self, layer: u64, span: u32) -> Waiters {
        self.layers
            .get_mut(&layer)
            .and_then(|queue| queue.wanted.get_mut(&span))
            .map(|wanted| std::mem::take(&mut wanted.waiters))
            .unwrap_or_default()
    }

    /// Takes a span off the list if nobody has come to wait for it meanwhile; else takes those.
    pub(crate) fn finish(&mut self, layer: u64, span: u32) -> Option<Waiters> {
        let waiters = self.take_waiters(layer, span);
        if !waiters.is_empty() {
            return Some(waiters);
        }
        if let Some(queue) = self.layers.get_mut(&layer) {
            queue.wanted.remove(&span);
        }
        None
    }

    /// Takes a span off the list because it cannot be had, and remembers that until `until`.
    pub(crate) fn fail(
        &mut self,
        layer: u64,
        span: u32,
        error: &ReadError,
        until: Instant,
    ) -> Waiters {
        let Some(queue) = self.layers.get_mut(&layer) else {
            return Vec::new();
        };
        queue.failed.insert(span, (until, error.clone()));
        let wanted = queue.wanted.remove(&span);
        wanted.map(|wanted| wanted.waiters).unwrap_or_default()
    }

    /// Forgets a layer; answers who waited for it and which requests are to be stopped.
    pub(crate) fn close(&mut self, layer: u64) -> (Waiters, Vec<AbortHandle>) {
        let mut waiters = Vec::new();
        if let Some(queue) = self.layers.remove(&layer) {
            waiters.extend(queue.wanted.into_values().flat_map(|wanted| wanted.waiters));
        }
        let requests = self.requests.values();
        let aborts = requests.filter(|request| request.layer == layer);
        (
            waiters,
            aborts.filter_map(|request| request.abort.clone()).collect(),
        )
    }

    pub(crate) fn layers(&self) -> Vec<Arc<Layer>> {
        self.layers
            .values()
            .map(|queue| queue.layer.clone())
            .collect()
    }

    /// Spans that wait to be requested, and requests in flight.
    pub(crate) fn load(&self) -> (usize, usize) {
        let wanted = self.layers.values().flat_map(|queue| queue.wanted.values());
        let queued = wanted
            .filter(|wanted| wanted.stage == Stage::Queued)
            .count();
        (queued, self.requests.len())
    }

    /// Is there background work that is not done yet?
    pub(crate) fn in_background(&self) -> bool {
        let mut wanted = self.layers.values().flat_map(|queue| queue.wanted.values());
        wanted.any(|wanted| wanted.priority == Priority::Background)
    }
}

/// How a request broke.
pub(crate) struct Broken<'a> {
    /// It may succeed the next time.
    pub(crate) transient: bool,
    /// It has brought a span before.
    pub(crate) progress: bool,
    /// What to tell those who wait for a span.
    pub(crate) error: &'a dyn Fn(u32) -> ReadError,
}

/// A span that somebody waits for and that cannot be had.
pub(crate) struct Failed {
    pub(crate) error: ReadError,
    pub(crate) waiters: Waiters,
}
