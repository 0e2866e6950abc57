//! The origins that layers are fetched from: each has its own limit on requests in flight, its own
//! circuit, and at most as many requests as there are free slots, so that none holds up another.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::Instant;

use super::circuit::Circuit;
use super::fill_pause::FillPause;
use super::response_rate::ResponseRate;
use crate::inflight_limit::InflightLimit;
use crate::span_key::OriginId;

/// Number of requests that demand may have beyond the limit of its origin.
pub(super) const DEMAND_RESERVE: usize = 2;

/// The origins of all layers.
#[derive(Debug)]
pub(super) struct Origins {
    by_id: BTreeMap<OriginId, Origin>,
    next: u64,
    /// Largest number of requests in flight to one origin.
    most: usize,
    /// Number of requests in flight to all of them.
    running: usize,
}

/// An origin.
#[derive(Debug)]
pub(super) struct Origin {
    pub(super) name: Arc<str>,
    pub(super) limit: InflightLimit,
    pub(super) circuit: Circuit,
    /// Whether background work lets it rest, because it has too many requests.
    pub(super) fill_pause: FillPause,
    pub(super) running: usize,
    /// When it last delivered bytes.
    pub(super) last_arrival: Option<Instant>,
    /// Rate of one of its responses, in bytes per second.
    pub(super) response_rate: ResponseRate,
    layers: usize,
}

impl Origins {
    pub(super) const fn new(most: usize) -> Self {
        Self {
            by_id: BTreeMap::new(),
            next: 0,
            most,
            running: 0,
        }
    }

    /// Adds a layer to the origin with this name.
    pub(super) fn join(&mut self, name: &str, now: Instant) -> OriginId {
        let mut known = self.by_id.iter_mut();
        if let Some((id, origin)) = known.find(|(_, origin)| &*origin.name == name) {
            origin.layers += 1;
            return *id;
        }
        let id = OriginId(self.next);
        self.next += 1;
        let origin = Origin {
            name: name.into(),
            limit: InflightLimit::new(self.most, now),
            circuit: Circuit::default(),
            fill_pause: FillPause::default(),
            running: 0,
            last_arrival: None,
            response_rate: ResponseRate::default(),
            layers: 1,
        };
        self.by_id.insert(id, origin);
        id
    }

    /// Removes a layer from an origin.
    pub(super) fn leave(&mut self, id: OriginId) {
        if let Some(origin) = self.by_id.get_mut(&id) {
            origin.layers = origin.layers.saturating_sub(1);
        }
        self.forget_unused(id);
    }

    pub(super) fn get(&self, id: OriginId) -> Option<&Origin> {
        self.by_id.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: OriginId) -> Option<&mut Origin> {
        self.by_id.get_mut(&id)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Origin> {
        self.by_id.values()
    }

    /// Whether one more request to an origin leaves as many slots free as the origin then has. An
    /// origin without a request gets one as long as there is any.
    pub(super) const fn has_share(&self, origin: &Origin) -> bool {
        let shared = 2 * (self.most + DEMAND_RESERVE);
        if origin.running == 0 {
            return self.running < 2 * shared;
        }
        origin.running < shared.saturating_sub(self.running)
    }

    pub(super) fn started(&mut self, id: OriginId) {
        self.running += 1;
        if let Some(origin) = self.by_id.get_mut(&id) {
            origin.running += 1;
        }
    }

    pub(super) fn ended(&mut self, id: OriginId) {
        self.running = self.running.saturating_sub(1);
        if let Some(origin) = self.by_id.get_mut(&id) {
            origin.running = origin.running.saturating_sub(1);
        }
        self.forget_unused(id);
    }

    fn forget_unused(&mut self, id: OriginId) {
        let unused = |origin: &Origin| origin.layers == 0 && origin.running == 0;
        if self.by_id.get(&id).is_some_and(unused) {
            self.by_id.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_origin_takes_half_of_the_slots_and_leaves_some_for_each_other() {
        let now = Instant::now();
        let mut origins = Origins::new(16);
        let mut all = Vec::new();
        for number in 0..40 {
            let id = origins.join(&format!("registry-{number}.example"), now);
            while origins.has_share(origins.get(id).unwrap()) {
                origins.started(id);
            }
            all.push(id);
        }
        let running = |id: &OriginId| origins.get(*id).unwrap().running;
        assert_eq!(all.iter().map(running).max(), Some(18));
        assert!(all.iter().map(running).all(|running| running > 0));
        for id in &all {
            while origins.get(*id).unwrap().running > 0 {
                origins.ended(*id);
            }
            origins.leave(*id);
        }
        assert_eq!(origins.all().count(), 0);
        assert_eq!(origins.running, 0);
    }
}
