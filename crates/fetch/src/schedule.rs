//! Which spans are wanted, how urgently, by which readers, and which request is next.
//!
//! The schedule is pure bookkeeping: it does no I/O, never waits, and takes the time from its caller.
//! What has to be done is returned as [`Effect`]s, which the driver carries out.

mod circuit;
mod effect;
mod fill_pause;
mod giving_up;
mod origins;
#[cfg(test)]
mod reference;
mod requests;
mod response_rate;
mod turns;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

use tokio::time::Instant;

use crate::ReadError;
use crate::priority::{PerPriority, Priority};
use crate::read_error::Cause;
use crate::span_key::{LayerId, OriginId, SpanKey, StartId};
use origins::Origins;
use turns::Turns;

pub(crate) use effect::{
    CircuitChange, Effect, FailedSpan, Health, Outcome, Request, RequestId, WantResult,
};
pub(crate) use requests::Conditions;

/// A span this far behind the position of a less urgent request is taken out of that request, in
/// compressed bytes.
const TOO_FAR: u64 = 4 << 20;

/// A background request is cut off for a reader if it has more than this left, in compressed bytes.
const WORTH_A_CUT: u64 = 1 << 20;

/// What the schedule knows of a layer's blob.
pub(crate) trait SpanLayout {
    /// The range of a span in the compressed layer.
    fn compressed(&self, span: u32) -> Option<Range<u64>>;

    /// Whether each request transfers the blob from its start.
    fn ignores_ranges(&self) -> bool;

    /// The name of the origin that serves the blob.
    fn origin(&self) -> String;

    /// The error for readers of a span while the circuit of its origin is open.
    fn origin_failing(&self, span: u32, origin: &str, error: &Cause) -> ReadError;
}

/// Limits of a [`Schedule`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct ScheduleConfig {
    pub(crate) max_inflight: usize,
    pub(crate) max_request_bytes: u64,
    pub(crate) read_timeout: Duration,
    pub(crate) negative_backoff: Duration,
}

/// The schedule of all layers `L` and their readers `W`.
pub(crate) struct Schedule<L, W> {
    config: ScheduleConfig,
    layers: BTreeMap<LayerId, LayerQueue<L, W>>,
    /// The layers with queued spans.
    turns: PerPriority<Turns>,
    origins: Origins,
    requests: HashMap<RequestId, InFlight>,
    next_request: u64,
    /// Effects of arrivals, for the next time that requests are started.
    pending: Vec<Effect<L, W>>,
    stopped: bool,
}

struct LayerQueue<L, W> {
    layer: L,
    origin: OriginId,
    /// Whether its last request failed because of its origin.
    failing: bool,
    /// Spans in the order in which they were wanted; entries may be outdated.
    queued: PerPriority<VecDeque<u32>>,
    wanted: BTreeMap<u32, Wanted<W>>,
    /// Spans that failed, until when that is remembered, and the error.
    failed: HashMap<u32, (Instant, ReadError)>,
}

struct Wanted<W> {
    priority: Priority,
    stage: Stage,
    waiters: Vec<W>,
    /// When its first reader gives up, unless bytes arrive.
    deadline: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Queued,
    Requested(RequestId),
    Arrived,
}

struct InFlight {
    layer: LayerId,
    origin: OriginId,
    priority: Priority,
    deadline: Instant,
    started: Instant,
    /// Number of bytes that it has brought.
    bytes: u64,
    /// The spans that have not arrived.
    left: Range<u32>,
}

impl<L: SpanLayout + Clone, W> Schedule<L, W> {
    pub(crate) fn new(config: ScheduleConfig) -> Self {
        Self {
            config,
            layers: BTreeMap::new(),
            turns: PerPriority::default(),
            origins: Origins::new(config.max_inflight),
            requests: HashMap::new(),
            next_request: 0,
            pending: Vec::new(),
            stopped: false,
        }
    }

    /// Adds a layer; `false` if the schedule has been stopped.
    pub(crate) fn add_layer(&mut self, id: LayerId, layer: L, now: Instant) -> bool {
        if self.stopped {
            return false;
        }
        let queue = LayerQueue {
            origin: self.origins.join(&layer.origin(), now),
            layer,
            failing: false,
            queued: PerPriority::default(),
            wanted: BTreeMap::new(),
            failed: HashMap::new(),
        };
        self.layers.insert(id, queue);
        true
    }

    /// What is wanted of a layer with [`Priority::Profile`] shares the turns of a start.
    pub(crate) fn join_start(&mut self, layer: LayerId, start: StartId) {
        if self.layers.contains_key(&layer) {
            self.turns.get_mut(Priority::Profile).share(layer, start);
        }
    }

    /// Wants a span. The waiter is kept if the result is [`WantResult::Pending`].
    ///
    /// `is_stored` must be determined under the lock of the schedule: a span is removed from the
    /// schedule only after it is stored, so that it is always one or the other.
    pub(crate) fn want(
        &mut self,
        key: SpanKey,
        priority: Priority,
        waiter: Option<W>,
        is_stored: bool,
        now: Instant,
    ) -> WantResult {
        let Some(queue) = self.layers.get_mut(&key.layer) else {
            return WantResult::Failed(ReadError::Closed);
        };
        if is_stored && !queue.wanted.contains_key(&key.span) {
            return WantResult::Stored;
        }
        if let Some((until, error)) = queue.failed.get(&key.span) {
            if now < *until {
                return WantResult::Failed(error.clone());
            }
            queue.failed.remove(&key.span);
        }
        if queue.failing
            && !queue.wanted.contains_key(&key.span)
            && let Some(origin) = self.origins.get(queue.origin)
            && let Some(error) = origin.circuit.refusal(now)
        {
            let error = queue.layer.origin_failing(key.span, &origin.name, error);
            return WantResult::Failed(error);
        }
        let wanted = queue.wanted.entry(key.span).or_insert_with(|| {
            queue.queued.get_mut(priority).push_back(key.span);
            self.turns.get_mut(priority).join(key.layer);
            Wanted {
                priority,
                stage: Stage::Queued,
                waiters: Vec::new(),
                deadline: None,
            }
        });
        if let Some(waiter) = waiter {
            wanted.waiters.push(waiter);
            wanted
                .deadline
                .get_or_insert(now + self.config.read_timeout);
        }
        if priority < wanted.priority {
            wanted.priority = priority;
            match wanted.stage {
                Stage::Queued => {
                    queue.queued.get_mut(priority).push_back(key.span);
                    self.turns.get_mut(priority).join(key.layer);
                }
                Stage::Requested(request) => self.raise_priority(request, key, priority),
                Stage::Arrived if priority == Priority::Demand => {
                    self.pending.push(Effect::Hasten(key));
                }
                Stage::Arrived => {}
            }
        }
        if priority == Priority::Demand {
            self.yield_to_readers();
        }
        WantResult::Pending
    }

    /// Ends background requests after the span that they bring, because a reader waits: the rest
    /// is queued again. Where a reader waits for one of their spans, they continue up to it.
    fn yield_to_readers(&mut self) {
        for (id, request) in &mut self.requests {
            let Some(queue) = self.layers.get_mut(&request.layer) else {
                continue;
            };
            if request.priority != Priority::Background || queue.layer.ignores_ranges() {
                continue;
            }
            let mut left = queue.wanted.range(request.left.clone()).rev();
            let urgent = left.find(|(_, wanted)| {
                wanted.stage == Stage::Requested(*id) && wanted.priority < Priority::Background
            });
            let last = urgent.map_or(request.left.start, |(span, _)| *span);
            let end = last.saturating_add(1).min(request.left.end);
            let (Some(first), Some(rest)) = (
                queue.layer.compressed(end),
                request
                    .left
                    .end
                    .checked_sub(1)
                    .and_then(|last| queue.layer.compressed(last)),
            ) else {
                continue;
            };
            // The connection is lost with the rest.
            if end >= request.left.end || rest.end.saturating_sub(first.start) < WORTH_A_CUT {
                continue;
            }
            for (span, wanted) in queue.wanted.range_mut(end..request.left.end) {
                if wanted.stage == Stage::Requested(*id) {
                    wanted.stage = Stage::Queued;
                    queue.queued.get_mut(wanted.priority).push_back(*span);
                    self.turns.get_mut(wanted.priority).join(request.layer);
                }
            }
            request.left.end = end;
        }
    }

    /// Raises the priority of a span that a less urgent request will bring. If that would take long,
    /// the request is cut off before the span, and what was cut off is queued again.
    fn raise_priority(&mut self, id: RequestId, key: SpanKey, priority: Priority) {
        let Some(request) = self.requests.get_mut(&id) else {
            return;
        };
        let Some(queue) = self.layers.get_mut(&key.layer) else {
            return;
        };
        let start = |span| queue.layer.compressed(span).map_or(0, |range| range.start);
        let distance = start(key.span).saturating_sub(start(request.left.start));
        if request.priority <= priority || distance < TOO_FAR {
            // The spans before it in the body are as urgent.
            let before = request.left.start..key.span;
            for (_, wanted) in queue.wanted.range_mut(before) {
                if wanted.stage == Stage::Requested(id) {
                    wanted.priority = wanted.priority.min(priority);
                }
            }
            return;
        }
        let cut_off = key.span..request.left.end;
        request.left.end = key.span;
        for (span, wanted) in queue.wanted.range_mut(cut_off) {
            if wanted.stage == Stage::Requested(id) {
                wanted.stage = Stage::Queued;
                queue.queued.get_mut(wanted.priority).push_back(*span);
                self.turns.get_mut(wanted.priority).join(key.layer);
            }
        }
    }

    /// The priority of a wanted span.
    pub(crate) fn priority(&self, key: SpanKey) -> Option<Priority> {
        let wanted = self.layers.get(&key.layer)?.wanted.get(&key.span)?;
        Some(wanted.priority)
    }

    /// Removes and returns the readers waiting for an arrived span.
    pub(crate) fn take_waiters(&mut self, key: SpanKey) -> Vec<W> {
        self.layers
            .get_mut(&key.layer)
            .and_then(|queue| queue.wanted.get_mut(&key.span))
            .map(|wanted| std::mem::take(&mut wanted.waiters))
            .unwrap_or_default()
    }

    /// Removes a stored span. If readers have joined since, returns them instead: the caller answers
    /// them and calls again.
    pub(crate) fn finish(&mut self, key: SpanKey) -> Option<Vec<W>> {
        let waiters = self.take_waiters(key);
        if !waiters.is_empty() {
            return Some(waiters);
        }
        if let Some(queue) = self.layers.get_mut(&key.layer) {
            queue.wanted.remove(&key.span);
        }
        None
    }

    /// Removes a span that arrived and cannot be used, and remembers the error for a while.
    pub(crate) fn fail(
        &mut self,
        key: SpanKey,
        error: ReadError,
        now: Instant,
    ) -> Vec<Effect<L, W>> {
        let Some(queue) = self.layers.get_mut(&key.layer) else {
            return Vec::new();
        };
        let until = now + self.config.negative_backoff;
        queue.failed.insert(key.span, (until, error.clone()));
        let wanted = queue.wanted.remove(&key.span);
        let priority = wanted.as_ref().map(|wanted| wanted.priority);
        vec![Effect::Fail(FailedSpan {
            layer: queue.layer.clone(),
            priority: priority.unwrap_or(Priority::Background),
            reported: true,
            waiters: wanted.map(|wanted| wanted.waiters).unwrap_or_default(),
            error,
        })]
    }

    /// Removes a layer: its readers are answered, its requests aborted.
    pub(crate) fn close(&mut self, layer: LayerId) -> Vec<Effect<L, W>> {
        let mut effects = Vec::new();
        if let Some(queue) = self.layers.remove(&layer) {
            self.origins.leave(queue.origin);
            for priority in Priority::ALL {
                self.turns.get_mut(priority).forget(layer);
            }
            let waiters = queue.wanted.into_values().flat_map(|wanted| wanted.waiters);
            effects.push(Effect::AnswerClosed(waiters.collect()));
        }
        let requests = self.requests.iter();
        let aborted = requests.filter(|(_, request)| request.layer == layer);
        effects.extend(aborted.map(|(id, _)| Effect::Abort(*id)));
        effects
    }

    /// Refuses new layers and requests from now on; returns the layers, for closing them.
    pub(crate) fn stop(&mut self) -> Vec<L> {
        self.stopped = true;
        let queues = self.layers.values();
        queues.map(|queue| queue.layer.clone()).collect()
    }

    /// Number of spans that wait to be requested, and of requests in flight.
    pub(crate) fn load(&self) -> (usize, usize) {
        let wanted = self.layers.values().flat_map(|queue| queue.wanted.values());
        let queued = wanted
            .filter(|wanted| wanted.stage == Stage::Queued)
            .count();
        (queued, self.requests.len())
    }

    /// Whether a span that a reader waits for is being requested.
    pub(crate) fn demand_waits(&self) -> bool {
        let demanded = |request: &InFlight| request.priority == Priority::Demand;
        self.requests.values().any(demanded)
    }

    /// The lowest limit on requests in flight to one origin.
    pub(crate) fn request_limit(&self) -> usize {
        let limits = self.origins.all().map(|origin| origin.limit.get());
        limits.min().unwrap_or(self.config.max_inflight)
    }

    /// Rate of the link to a layer's origin in bytes per second, when it was last filled.
    pub(crate) fn link_rate(&self, layer: LayerId) -> Option<u64> {
        let origin = self.origins.get(self.layers.get(&layer)?.origin)?;
        origin.limit.link_rate()
    }

    /// Number of origins, and of those whose circuit is open.
    pub(crate) fn origins(&self) -> (usize, usize) {
        let open = self.origins.all().filter(|origin| origin.circuit.is_open());
        (self.origins.all().count(), open.count())
    }

    /// Lowers the limit on requests in flight to the origin of a layer: it is overloaded.
    pub(crate) fn overloaded(&mut self, layer: LayerId, now: Instant) {
        if let Some(origin) = self.origin_of(layer) {
            origin.limit.overloaded(now);
        }
    }

    /// Records that bytes of a layer arrived, through a request unless a span is fetched again.
    pub(crate) fn progressed(
        &mut self,
        layer: LayerId,
        request: Option<RequestId>,
        bytes: u64,
        now: Instant,
    ) {
        if let Some(request) = request.and_then(|id| self.requests.get_mut(&id)) {
            request.bytes = request.bytes.saturating_add(bytes);
        }
        if let Some(origin) = self.origin_of(layer) {
            origin.last_arrival = Some(now);
        }
    }

    /// Records that a response with part of a layer ended: its bytes, and how long they came.
    pub(crate) fn response_ended(&mut self, layer: LayerId, bytes: u64, time: Duration) {
        if let Some(origin) = self.origin_of(layer) {
            origin.response_rate.ended(bytes, time);
        }
    }

    /// Whether a range of a layer that a reader waits for arrives sooner in two halves.
    pub(crate) fn halves_pay(&self, layer: LayerId, bytes: u64) -> bool {
        let Some(queue) = self.layers.get(&layer) else {
            return false;
        };
        let origin = self.origins.get(queue.origin);
        origin.is_some_and(|origin| {
            let has_room = origin.running < origin.limit.get() + origins::DEMAND_RESERVE;
            let is_well = !queue.failing && !queue.layer.ignores_ranges();
            has_room && is_well && origin.response_rate.halves_pay(bytes)
        })
    }

    fn origin_of(&mut self, layer: LayerId) -> Option<&mut origins::Origin> {
        self.origins.get_mut(self.layers.get(&layer)?.origin)
    }

    /// Notes that the origin of a layer refused a background request because it has too many, and
    /// the wait that it requests.
    pub(crate) fn throttled(&mut self, layer: LayerId, wait: Option<Duration>, now: Instant) {
        if let Some(origin) = self.origin_of(layer) {
            origin.fill_pause.refused(wait, now);
        }
    }

    /// Whether background work for a layer lets its origin rest.
    pub(crate) fn is_throttled(&self, layer: LayerId, now: Instant) -> bool {
        let queue = self.layers.get(&layer);
        let origin = queue.and_then(|queue| self.origins.get(queue.origin));
        origin.is_some_and(|origin| origin.fill_pause.is_throttled(now))
    }

    /// Whether the last request for a layer failed because of its origin, which still fails.
    pub(crate) fn is_failing(&self, layer: LayerId) -> bool {
        let Some(queue) = self.layers.get(&layer) else {
            return false;
        };
        let origin = self.origins.get(queue.origin);
        queue.failing && origin.is_some_and(|origin| origin.circuit.is_open())
    }

    /// Whether background spans of a layer wait for a request or are being requested.
    pub(crate) fn has_background_of(&self, layer: LayerId) -> bool {
        let queue = self.layers.get(&layer);
        queue.is_some_and(|queue| {
            let mut wanted = queue.wanted.values();
            wanted.any(|wanted| {
                wanted.priority == Priority::Background && wanted.stage != Stage::Arrived
            })
        })
    }

    /// Compressed bytes of background spans that have not arrived.
    pub(crate) fn background_bytes(&self) -> u64 {
        let mut bytes = 0_u64;
        for queue in self.layers.values() {
            for (span, wanted) in &queue.wanted {
                let range = queue.layer.compressed(*span).unwrap_or_default();
                if wanted.priority == Priority::Background && wanted.stage != Stage::Arrived {
                    bytes = bytes.saturating_add(range.end.saturating_sub(range.start));
                }
            }
        }
        bytes
    }

    /// Whether background spans are still being fetched.
    pub(crate) fn has_background(&self) -> bool {
        let mut wanted = self.layers.values().flat_map(|queue| queue.wanted.values());
        wanted.any(|wanted| wanted.priority == Priority::Background)
    }
}
