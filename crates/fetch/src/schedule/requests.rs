//! The life of a request: composed of neighbouring spans, cut off when a reader cannot wait for it,
//! and ended.

use std::ops::Range;
use std::time::Duration;

use tokio::time::Instant;

use super::effect::{Effect, FailedSpan, Health, Outcome, Request, RequestId};
use super::origins::DEMAND_RESERVE;
use super::{InFlight, Schedule, SpanLayout, Stage};
use crate::priority::Priority;
use crate::span_key::{LayerId, OriginId};

/// Size in bytes of the parts into which ranges are split, unless the origin ignores ranges: several
/// connections are faster than one, and what is more urgent waits for one of them at most.
const PART: u64 = 8 << 20;
/// Longest time for which a request that probes a failing origin waits for bytes.
const PROBE_TIMEOUT: Duration = Duration::from_secs(20);

/// What the schedule has to know of the rest of the fetcher to start requests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Conditions {
    pub(crate) now: Instant,
    /// Largest number of background requests in flight; 0 while readers need the link.
    pub(crate) background: usize,
}

impl<L: SpanLayout + Clone, W> Schedule<L, W> {
    /// Starts the requests that may be in flight now.
    pub(crate) fn start_requests(&mut self, conditions: Conditions) -> Vec<Effect<L, W>> {
        let mut effects = std::mem::take(&mut self.pending);
        while let Some(request) = self.next_request(conditions) {
            effects.push(Effect::Start(request));
        }
        effects
    }

    fn next_request(&mut self, conditions: Conditions) -> Option<Request<L>> {
        if self.stopped {
            return None;
        }
        for priority in Priority::ALL {
            for layer in self.turns.get(priority).in_order() {
                let Some(span) = self.front(layer, priority) else {
                    self.turns.get_mut(priority).leave(layer);
                    continue;
                };
                if !self.may_start(layer, priority, conditions) {
                    continue;
                }
                if let Some(queue) = self.layers.get_mut(&layer) {
                    queue.queued.get_mut(priority).pop_front();
                }
                return self.compose(layer, span, priority, conditions);
            }
        }
        None
    }

    /// Whether a request for a layer may be in flight now.
    fn may_start(&mut self, layer: LayerId, priority: Priority, conditions: Conditions) -> bool {
        let Some(queue) = self.layers.get(&layer) else {
            return false;
        };
        let (id, failing) = (queue.origin, queue.failing);
        let in_background = self.running_in_background(id);
        let urgent = |request: &InFlight| request.priority < Priority::Background;
        let others_need_none = !self.requests.values().any(urgent);
        let Some(origin) = self.origins.get(id) else {
            return false;
        };
        if failing && origin.circuit.refusal(conditions.now).is_some() {
            return false;
        }
        let limit = origin.limit.get();
        let most = match priority {
            Priority::Demand => limit + DEMAND_RESERVE,
            Priority::Readahead => limit,
            Priority::Profile | Priority::Background => limit - 1,
        };
        let free = origin.running < most;
        if priority == Priority::Background {
            let throttled = origin.fill_pause.is_throttled(conditions.now);
            let has_share = self.origins.has_share(origin) && !throttled;
            let wanted = others_need_none && in_background < conditions.background;
            if wanted
                && !free
                && let Some(origin) = self.origins.get_mut(id)
            {
                // More requests may bring more.
                origin.limit.waited(conditions.now);
            }
            return free && wanted && has_share;
        }
        let has_share = self.origins.has_share(origin);
        if !free && let Some(origin) = self.origins.get_mut(id) {
            origin.limit.waited(conditions.now);
        }
        free && has_share
    }

    fn running_in_background(&self, origin: OriginId) -> usize {
        let background = |request: &&InFlight| {
            request.origin == origin && request.priority == Priority::Background
        };
        self.requests.values().filter(background).count()
    }

    /// The first span of a layer that waits with this priority.
    fn front(&mut self, layer: LayerId, priority: Priority) -> Option<u32> {
        let layer = self.layers.get_mut(&layer)?;
        let queue = layer.queued.get_mut(priority);
        while let Some(span) = queue.front().copied() {
            let waits = layer.wanted.get(&span);
            if waits.is_some_and(|w| w.stage == Stage::Queued && w.priority == priority) {
                return Some(span);
            }
            queue.pop_front();
        }
        None
    }

    /// Makes a request of a span and its neighbours that wait too.
    fn compose(
        &mut self,
        layer_id: LayerId,
        span: u32,
        priority: Priority,
        conditions: Conditions,
    ) -> Option<Request<L>> {
        let queue = self.layers.get_mut(&layer_id)?;
        let layer = queue.layer.clone();
        let most = self.config.max_request_bytes.max(1);
        let most = match layer.ignores_ranges() {
            true => most,
            false => most.min(PART),
        };
        let end_of_first = layer.compressed(span)?.end;
        // Also earlier spans of this urgency: the order in which they were wanted means little.
        let mut first = span;
        while let Some(before) = first.checked_sub(1) {
            let start = layer.compressed(before)?.start;
            let waits = queue.wanted.get(&before);
            let joins = waits.is_some_and(|w| w.stage == Stage::Queued && w.priority <= priority);
            if !joins || end_of_first.saturating_sub(start) > most {
                break;
            }
            first = before;
        }
        let start = layer.compressed(first)?.start;
        let id = RequestId(self.next_request);
        self.next_request += 1;
        let mut end = first;
        for (span, wanted) in queue.wanted.range_mut(first..) {
            // Background spans do not delay the readers of others.
            let joins = *span == end
                && wanted.stage == Stage::Queued
                && (wanted.priority < Priority::Background || priority == Priority::Background);
            let until = layer.compressed(*span)?.end;
            if !joins || (*span > first && until.saturating_sub(start) > most) {
                break;
            }
            wanted.stage = Stage::Requested(id);
            end += 1;
        }
        let spans = first..end;
        // Each is as urgent as what comes after it in the same body.
        let mut urgency = Priority::Background;
        for (_, wanted) in queue.wanted.range_mut(spans.clone()).rev() {
            urgency = urgency.min(wanted.priority);
            wanted.priority = urgency;
        }
        let readers = queue.wanted.range(spans.clone());
        let earliest = readers.filter_map(|(_, wanted)| wanted.deadline).min();
        let origin_id = queue.origin;
        let origin = self.origins.get_mut(origin_id)?;
        // A read that waited its turn while bytes arrived for others has not run out of time.
        let timeout = self.config.read_timeout;
        let moved = origin.last_arrival.map(|at| at + timeout);
        let earliest = earliest.unwrap_or(conditions.now + timeout);
        let mut deadline = moved.map_or(earliest, |moved| moved.max(earliest));
        if queue.failing && origin.circuit.is_open() {
            origin.circuit.probes(id);
            deadline = deadline.min(conditions.now + PROBE_TIMEOUT);
        }
        let end_of_last = spans
            .end
            .checked_sub(1)
            .and_then(|last| layer.compressed(last));
        let bytes = end_of_last.map_or(0, |last| last.end.saturating_sub(start));
        self.turns.get_mut(priority).charge(layer_id, bytes);
        let in_flight = InFlight {
            layer: layer_id,
            origin: origin_id,
            priority,
            deadline,
            started: conditions.now,
            bytes: 0,
            left: spans.clone(),
        };
        self.requests.insert(id, in_flight);
        self.origins.started(origin_id);
        Some(Request {
            id,
            layer,
            origin: origin_id,
            priority,
            spans,
            deadline,
        })
    }

    /// Records that a request receives a span; `None` if the request was cut off before it.
    pub(crate) fn receiving(&mut self, request: RequestId, span: u32) -> Option<Priority> {
        let running = self.requests.get_mut(&request)?;
        if span >= running.left.end {
            return None;
        }
        running.left.start = span;
        let wanted = self.layers.get(&running.layer)?.wanted.get(&span)?;
        (wanted.stage == Stage::Requested(request)).then_some(wanted.priority)
    }

    /// Records that a request has brought a span of `bytes` bytes; returns the span's priority.
    pub(crate) fn arrived(
        &mut self,
        request: RequestId,
        span: u32,
        bytes: u64,
        now: Instant,
    ) -> Option<Priority> {
        let running = self.requests.get_mut(&request)?;
        running.left.start = span.saturating_add(1);
        let (layer, origin) = (running.layer, running.origin);
        if let Some(origin) = self.origins.get_mut(origin) {
            origin.limit.received(bytes, origin.running, now);
            origin.last_arrival = Some(now);
            if running.priority == Priority::Background {
                origin.fill_pause.end();
            }
        }
        let closed = self.answered(layer, origin);
        self.pending.extend(closed);
        let wanted = self.layers.get_mut(&layer)?.wanted.get_mut(&span)?;
        wanted.stage = Stage::Arrived;
        Some(wanted.priority)
    }

    /// Removes a request. Spans that it has not brought fail, except where a reader joined later than
    /// the request was made and so has time for another one.
    pub(crate) fn ended(
        &mut self,
        request: RequestId,
        outcome: &Outcome<'_>,
        now: Instant,
    ) -> Vec<Effect<L, W>> {
        let Some(running) = self.requests.remove(&request) else {
            return Vec::new();
        };
        let (id, origin) = (running.layer, running.origin);
        if let Some(origin) = self.origins.get_mut(origin) {
            origin.circuit.ended(request);
        }
        let changed = match outcome {
            Outcome::Broken { health, .. } => match health {
                Health::Failing(error) => self.failed(id, origin, error, now),
                Health::Answering => self.answered(id, origin),
                Health::Unknown => None,
            },
            Outcome::Completed => None,
        };
        let mut effects: Vec<_> = changed.into_iter().collect();
        let missing = self.missing(id, request, running.left.clone());
        for span in missing {
            effects.extend(self.missed(id, span, running.deadline, outcome, now));
        }
        effects.extend(self.fail_refused(origin));
        if matches!(outcome, Outcome::Broken { .. }) {
            self.find_origin(id, now);
        }
        self.origins.ended(origin);
        effects
    }

    /// Fails a span that a request has not brought, or queues it again.
    fn missed(
        &mut self,
        layer: LayerId,
        span: u32,
        deadline: Instant,
        outcome: &Outcome<'_>,
        now: Instant,
    ) -> Option<Effect<L, W>> {
        let queue = self.layers.get_mut(&layer)?;
        let wanted = queue.wanted.get_mut(&span)?;
        let error = match outcome {
            Outcome::Broken {
                transient, error, ..
            } if !transient || wanted.deadline.is_none_or(|at| at <= deadline) => error(span),
            _ => {
                wanted.stage = Stage::Queued;
                queue.queued.get_mut(wanted.priority).push_back(span);
                self.turns.get_mut(wanted.priority).join(layer);
                return None;
            }
        };
        let wanted = queue.wanted.remove(&span)?;
        if !wanted.waiters.is_empty() {
            let until = now + self.config.negative_backoff;
            queue.failed.insert(span, (until, error.clone()));
        }
        Some(Effect::Fail(FailedSpan {
            layer: queue.layer.clone(),
            priority: wanted.priority,
            reported: !wanted.waiters.is_empty(),
            waiters: wanted.waiters,
            error,
        }))
    }

    /// The spans of a request that have not arrived.
    fn missing(&self, layer: LayerId, request: RequestId, left: Range<u32>) -> Vec<u32> {
        let wanted = self
            .layers
            .get(&layer)
            .map(|queue| queue.wanted.range(left));
        wanted
            .into_iter()
            .flatten()
            .filter(|(_, wanted)| wanted.stage == Stage::Requested(request))
            .map(|(span, _)| *span)
            .collect()
    }
}
