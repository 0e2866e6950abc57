//! The life of a request: composed of neighbouring spans, cut off when a reader cannot wait for it,
//! and ended.

use std::ops::Range;

use tokio::time::Instant;

use super::effect::{Effect, FailedSpan, Outcome, Request, RequestId};
use super::{InFlight, Schedule, SpanLayout, Stage};
use crate::priority::Priority;
use crate::span_key::{LayerId, SpanKey};

/// Size in bytes of the parts into which urgent ranges are split: several connections are faster
/// than one.
const URGENT_PART: u64 = 8 << 20;
/// Number of requests that demand may have beyond the limit.
const DEMAND_RESERVE: usize = 2;

/// What the schedule has to know of the rest of the fetcher to start requests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Conditions {
    pub(crate) now: Instant,
    /// When a registry last delivered bytes.
    pub(crate) last_arrival: Instant,
    /// Whether there has been no reader for long enough.
    pub(crate) background_allowed: bool,
}

impl<L: SpanLayout + Clone, W> Schedule<L, W> {
    /// Starts the requests that may be in flight now.
    pub(crate) fn start_requests(&mut self, conditions: Conditions) -> Vec<Effect<L, W>> {
        let next = || self.next_request(conditions).map(Effect::Start);
        std::iter::from_fn(next).collect()
    }

    fn next_request(&mut self, conditions: Conditions) -> Option<Request<L>> {
        if self.stopped {
            return None;
        }
        let limit = self.limit.get();
        let running = self.requests.len();
        let in_background = self.running(Priority::Background);
        let urgent = self.running(Priority::Demand) + self.running(Priority::Readahead);
        for priority in Priority::ALL {
            let Some(first) = self.front(priority) else {
                continue;
            };
            let free = match priority {
                Priority::Demand => running < limit + DEMAND_RESERVE,
                Priority::Readahead => running < limit,
                Priority::Profile => running < limit - 1,
                Priority::Background => {
                    conditions.background_allowed
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
            return self.compose(first, priority, conditions);
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
    fn front(&mut self, priority: Priority) -> Option<SpanKey> {
        let queue = self.queues.get_mut(priority);
        while let Some(key) = queue.front().copied() {
            let waits = self
                .layers
                .get(&key.layer)
                .and_then(|layer| layer.wanted.get(&key.span));
            if waits.is_some_and(|w| w.stage == Stage::Queued && w.priority == priority) {
                return Some(key);
            }
            queue.pop_front();
        }
        None
    }

    /// Makes a request of a span and its neighbours that wait too.
    fn compose(
        &mut self,
        key: SpanKey,
        priority: Priority,
        conditions: Conditions,
    ) -> Option<Request<L>> {
        let queue = self.layers.get_mut(&key.layer)?;
        let layer = queue.layer.clone();
        let most = self.config.max_request_bytes.max(1);
        let most = if priority >= Priority::Profile || layer.ignores_ranges() {
            most
        } else {
            most.min(URGENT_PART)
        };
        let end_of_first = layer.compressed(key.span)?.end;
        // Also earlier spans of this urgency: the order in which they were wanted means little.
        let mut first = key.span;
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
        // A read that waited its turn while bytes arrived for others has not run out of time.
        let timeout = self.config.read_timeout;
        let deadline = earliest
            .unwrap_or(conditions.now + timeout)
            .max(conditions.last_arrival + timeout);
        let in_flight = InFlight {
            layer: key.layer,
            priority,
            deadline,
            left: spans.clone(),
        };
        self.requests.insert(id, in_flight);
        Some(Request {
            id,
            layer,
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
        self.limit.received(bytes, now);
        let running = self.requests.get_mut(&request)?;
        running.left.start = span.saturating_add(1);
        let wanted = self.layers.get_mut(&running.layer)?.wanted.get_mut(&span)?;
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
        let missing = self.missing(running.layer, request, running.left.clone());
        let Some(queue) = self.layers.get_mut(&running.layer) else {
            return Vec::new();
        };
        let mut effects = Vec::new();
        for span in missing {
            let Some(wanted) = queue.wanted.get_mut(&span) else {
                continue;
            };
            let error = match outcome {
                Outcome::Broken { transient, error }
                    if !transient || wanted.deadline.is_none_or(|at| at <= running.deadline) =>
                {
                    error(span)
                }
                _ => {
                    wanted.stage = Stage::Queued;
                    let layer = running.layer;
                    self.queues
                        .get_mut(wanted.priority)
                        .push_back(SpanKey { layer, span });
                    continue;
                }
            };
            let Some(wanted) = queue.wanted.remove(&span) else {
                continue;
            };
            if !wanted.waiters.is_empty() {
                let until = now + self.config.negative_backoff;
                queue.failed.insert(span, (until, error.clone()));
            }
            effects.push(Effect::Fail(FailedSpan {
                layer: queue.layer.clone(),
                priority: wanted.priority,
                reported: !wanted.waiters.is_empty(),
                waiters: wanted.waiters,
                error,
            }));
        }
        effects
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
