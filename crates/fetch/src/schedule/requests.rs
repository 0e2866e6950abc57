//! The life of a request in the schedule: composed of spans that are neighbours, cut off when a reader
//! cannot wait for it, and what becomes of its spans when it ends.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use soci_ztoc::SpanId;
use tokio::task::AbortHandle;

use super::{Running, Schedule, Stage, Waiters};
use crate::ReadError;
use crate::layer::Layer;
use crate::priority::Priority;

/// One response is slower than the link, so what readers wait for is split into parts of this size.
const URGENT_PART: u64 = 8 << 20;
/// Requests that demand may have beyond the limit.
const DEMAND_RESERVE: usize = 2;
/// How often a span that a reader waits for is requested.
const ATTEMPTS: u32 = 3;

/// A request to be made.
pub(crate) struct Request {
    pub(crate) id: u64,
    pub(crate) layer: Arc<Layer>,
    pub(crate) priority: Priority,
    pub(crate) spans: Range<u32>,
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

impl Schedule {
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
        // Each is as urgent as what comes after it in the same body.
        let mut urgency = Priority::Background;
        for (_, wanted) in queue.wanted.range_mut(spans.clone()).rev() {
            urgency = urgency.min(wanted.priority);
            wanted.priority = urgency;
        }
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
            if broken.is_some() && wanted.priority == Priority::Background {
                queue.layer.filling.failed();
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
}
