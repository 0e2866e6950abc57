//! When fetching is given up: for readers of an origin that fails, until it answers again, and for
//! readers that are gone.

use std::time::Duration;

use tokio::time::Instant;

use super::effect::{CircuitChange, Effect, FailedSpan, RequestId};
use super::{InFlight, LayerQueue, Schedule, SpanLayout, Stage};
use crate::priority::Priority;
use crate::read_error::Cause;
use crate::span_key::{LayerId, OriginId};

/// A request that will bring the rest within this time, at the rate so far, continues.
const NEARLY: Duration = Duration::from_secs(1);

impl<L: SpanLayout + Clone, W> Schedule<L, W> {
    /// Records that an origin answered for a layer.
    pub(super) fn answered(&mut self, layer: LayerId, origin: OriginId) -> Option<Effect<L, W>> {
        if let Some(queue) = self.layers.get_mut(&layer) {
            queue.failing = false;
        }
        let origin = self.origins.get_mut(origin)?;
        origin.circuit.answered().then(|| {
            Effect::Circuit(CircuitChange {
                origin: origin.name.clone(),
                opened: None,
            })
        })
    }

    /// Records that an origin failed for a layer.
    pub(super) fn failed(
        &mut self,
        layer: LayerId,
        origin: OriginId,
        error: &Cause,
        now: Instant,
    ) -> Option<Effect<L, W>> {
        if let Some(queue) = self.layers.get_mut(&layer) {
            queue.failing = true;
        }
        let origin = self.origins.get_mut(origin)?;
        let failures = origin.circuit.failed(error.clone(), now)?;
        Some(Effect::Circuit(CircuitChange {
            origin: origin.name.clone(),
            opened: Some((failures, error.clone())),
        }))
    }

    /// Fails the queued spans of layers that failed, if the circuit of their origin is open.
    pub(super) fn fail_refused(&mut self, id: OriginId) -> Vec<Effect<L, W>> {
        let Some(origin) = self.origins.get(id) else {
            return Vec::new();
        };
        let Some(cause) = origin.circuit.error() else {
            return Vec::new();
        };
        let mut effects = Vec::new();
        let layers = self.layers.values_mut();
        for queue in layers.filter(|queue| queue.origin == id && queue.failing) {
            let layer = queue.layer.clone();
            let queued = queue.wanted.iter();
            let queued = queued.filter(|(_, wanted)| wanted.stage == Stage::Queued);
            let queued: Vec<u32> = queued.map(|(span, _)| *span).collect();
            for span in queued {
                let Some(wanted) = queue.wanted.remove(&span) else {
                    continue;
                };
                effects.push(Effect::Fail(FailedSpan {
                    layer: layer.clone(),
                    priority: wanted.priority,
                    reported: !wanted.waiters.is_empty(),
                    waiters: wanted.waiters,
                    error: layer.origin_failing(span, &origin.name, cause),
                }));
            }
        }
        effects
    }

    /// Looks again from where a layer is served: another repository may be next.
    pub(super) fn find_origin(&mut self, layer: LayerId, now: Instant) {
        let Some(queue) = self.layers.get_mut(&layer) else {
            return;
        };
        let origin = self.origins.join(&queue.layer.origin(), now);
        if origin != queue.origin {
            // What the other origin has done says nothing about this one.
            queue.failing = false;
        }
        self.origins
            .leave(std::mem::replace(&mut queue.origin, origin));
    }

    /// Whether a reader waits.
    pub(crate) fn has_waiters(&self) -> bool {
        let mut wanted = self.layers.values().flat_map(|queue| queue.wanted.values());
        wanted.any(|wanted| !wanted.waiters.is_empty())
    }

    /// Removes the readers for which `is_wanted` returns `false`, and the demand that had no other.
    pub(crate) fn abandon(
        &mut self,
        is_wanted: impl Fn(&W) -> bool,
        now: Instant,
    ) -> Vec<Effect<L, W>> {
        let mut gone = Vec::new();
        for queue in self.layers.values_mut() {
            let mut unwanted = Vec::new();
            for (span, wanted) in &mut queue.wanted {
                let left = wanted.waiters.extract_if(.., |waiter| !is_wanted(waiter));
                let before = gone.len();
                gone.extend(left);
                let empty = gone.len() > before && wanted.waiters.is_empty();
                if empty && wanted.stage == Stage::Queued {
                    unwanted.push(*span);
                }
            }
            for span in unwanted {
                queue.wanted.remove(&span);
            }
        }
        if gone.is_empty() {
            return Vec::new();
        }
        let requests = self.requests.iter();
        let useless = requests.filter(|(id, request)| self.is_useless(**id, request, now));
        let useless: Vec<_> = useless.map(|(id, _)| *id).collect();
        let mut effects = vec![Effect::Forget(gone)];
        for id in useless {
            let Some(request) = self.requests.remove(&id) else {
                continue;
            };
            if let Some(queue) = self.layers.get_mut(&request.layer) {
                let of_request = |wanted: &super::Wanted<W>| wanted.stage == Stage::Requested(id);
                queue.wanted.retain(|_, wanted| !of_request(wanted));
            }
            if let Some(origin) = self.origins.get_mut(request.origin) {
                origin.circuit.ended(id);
            }
            self.origins.ended(request.origin);
            effects.push(Effect::Abort(id));
        }
        effects
    }

    /// Whether a request was made for readers, of whom none is left, and has much to bring.
    fn is_useless(&self, id: RequestId, request: &InFlight, now: Instant) -> bool {
        let Some(queue) = self.layers.get(&request.layer) else {
            return false;
        };
        if request.priority != Priority::Demand || request.left.is_empty() {
            return false;
        }
        let mut left = queue.wanted.range(request.left.clone());
        let has_readers = left
            .any(|(_, wanted)| wanted.stage == Stage::Requested(id) && !wanted.waiters.is_empty());
        let nearly_there = {
            let took = now.saturating_duration_since(request.started);
            let needed = u128::from(bytes_left(queue, request)) * took.as_millis();
            needed < u128::from(request.bytes) * NEARLY.as_millis()
        };
        !has_readers && !nearly_there
    }
}

fn bytes_left<L: SpanLayout, W>(queue: &LayerQueue<L, W>, request: &InFlight) -> u64 {
    let first = queue.layer.compressed(request.left.start);
    let last = request.left.end.checked_sub(1);
    let last = last.and_then(|last| queue.layer.compressed(last));
    match (first, last) {
        (Some(first), Some(last)) => last.end.saturating_sub(first.start),
        _ => 0,
    }
}
