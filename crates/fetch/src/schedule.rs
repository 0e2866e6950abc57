//! Which spans are wanted, by whom, how urgently, and which request is next. Pure bookkeeping: it is
//! behind one lock, never waits, and calls nobody.

mod requests;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use soci_ztoc::SpanId;
use tokio::task::AbortHandle;

use crate::ReadError;
use crate::budget::What;
use crate::layer::Layer;
use crate::limit::Limit;
use crate::pending_read::PendingRead;
use crate::priority::{PerPriority, Priority};

pub(crate) use requests::{Broken, Failed, Request};

/// A span this far behind what a less urgent request is receiving is taken out of that request, in
/// compressed bytes.
const TOO_FAR: u64 = 4 << 20;

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
            // It will come, after what comes before it.
            let before = request.left.start..span;
            if let Some(queue) = self.layers.get_mut(&layer.number) {
                for (_, wanted) in queue.wanted.range_mut(before) {
                    if wanted.stage == Stage::Requested(id) {
                        wanted.priority = wanted.priority.min(priority);
                    }
                }
            }
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

    /// How urgent a span is that somebody has asked for.
    pub(crate) fn priority(&self, (layer, span): What) -> Option<Priority> {
        let wanted = self.layers.get(&layer)?.wanted.get(&span)?;
        Some(wanted.priority)
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
