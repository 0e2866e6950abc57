//! What the ends of requests say about their origins: circuits open and close.

use tokio::time::Instant;

use super::effect::{CircuitChange, Effect, FailedSpan};
use super::{Schedule, SpanLayout, Stage};
use crate::read_error::Cause;
use crate::span_key::{LayerId, OriginId};

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
}
