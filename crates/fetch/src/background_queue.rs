//! The queue of layers that are filled in the background: whose turn it is, and which spans are next.
//!
//! Layers that a client waits for come first, then those of images that containers read from, then
//! the rest, in the order in which they were mounted. Within the layers of an image, what is
//! beside the spans that were read comes before what does not: a tar has the files of a directory
//! together. A layer whose batch brought nothing is skipped for a while.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use soci_oci::Digest;
use soci_ztoc::SpanId;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config::{BackgroundConfig, DropPolicy};
use crate::fill_progress::FillState;
use crate::served_layer::ServedLayer;
use crate::span_key::LayerId;

/// Size of a batch in compressed bytes.
const BATCH: u64 = 32 << 20;
/// Pause after the first batch that brought nothing; it doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest time for which a layer is skipped.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// Number of spans on each side of one that was read that are filled before the rest.
const NEAR: u32 = 16;
/// Time after a read for which an image counts as in use.
const IN_USE: Duration = Duration::from_secs(600);
/// Uncompressed bytes that may wait to be durable; beyond that nothing more is fetched.
const MOST_UNSYNCED: u64 = 256 << 20;
/// Time over which the rate of a layer is taken.
const RATE_PERIOD: Duration = Duration::from_secs(1);

/// The layers that are to be filled.
pub(crate) struct BackgroundQueue {
    config: BackgroundConfig,
    state: Mutex<State>,
    dropped: AtomicU64,
    added: Notify,
}

#[derive(Default)]
struct State {
    waiting: Vec<Waiting>,
    /// The layers of each image, by its manifest, filled or not.
    images: HashMap<Digest, Vec<Weak<ServedLayer>>>,
    next_number: u64,
    stopped: bool,
}

struct Waiting {
    layer: Arc<ServedLayer>,
    /// The manifests of its images.
    images: Vec<Digest>,
    /// Ascends in the order in which layers came.
    number: u64,
    /// A client waits for it until then.
    requested_until: Option<Instant>,
    /// Stored bytes when the last batch started.
    before_batch: Option<u64>,
    failures: u32,
    not_before: Instant,
    /// Stored bytes at some time, for the rate.
    sample: (Instant, u64),
}

impl Waiting {
    fn is_requested(&self, now: Instant) -> bool {
        self.requested_until.is_some_and(|until| now < until)
    }
}

/// The state of the fetcher, for that of each layer.
pub(crate) struct Outlook<'a> {
    pub(crate) now: Instant,
    /// Whether background requests may be made.
    pub(crate) may_fetch: bool,
    /// Whether the store is expected to take spans.
    pub(crate) store_accepts: bool,
    pub(crate) work: &'a dyn OutstandingWork,
    /// Whether the origin of a layer does not answer.
    pub(crate) is_failing: &'a dyn Fn(LayerId) -> bool,
}

/// What is being fetched.
pub(crate) trait OutstandingWork {
    /// Whether background work lets the origin of a layer rest.
    fn is_throttled(&self, layer: LayerId) -> bool;
    /// Whether background spans of a layer are being fetched.
    fn is_outstanding(&self, layer: LayerId) -> bool;
    /// Whether a span is being fetched, for whatever reason.
    fn is_wanted(&self, layer: LayerId, span: u32) -> bool;
}

impl BackgroundQueue {
    pub(crate) fn new(config: BackgroundConfig) -> Self {
        Self {
            config,
            state: Mutex::default(),
            dropped: AtomicU64::new(0),
            added: Notify::new(),
        }
    }

    /// Adds a layer of an image. If the queue is full, it or another layer is dropped.
    pub(crate) fn add(&self, layer: Arc<ServedLayer>, image: Digest) {
        let mut state = self.state.lock();
        if self.config.disable || state.stopped || layer.is_closed() {
            return;
        }
        state.join(&layer, image);
        if layer.stored.is_complete() || state.find(layer.id).is_some() {
            return;
        }
        let full = self
            .config
            .max_queue_size
            .is_some_and(|most| state.waiting.len() >= most);
        if full {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            let oldest = match self.config.drop_policy {
                DropPolicy::Newest => None,
                DropPolicy::Oldest => state.remove_oldest(),
            };
            let dropped = oldest.as_ref().unwrap_or(&layer);
            dropped.fill_progress.set_state(FillState::Off);
            tracing::warn!(layer = %dropped.stored.digest(), "background queue is full, layer not filled in background");
            if oldest.is_none() {
                return;
            }
        }
        state.push(layer, None);
        drop(state);
        self.added.notify_one();
    }

    /// Puts a layer before all others until a moment, also with filling turned off.
    pub(crate) fn request(&self, layer: &Arc<ServedLayer>, until: Instant) {
        let mut state = self.state.lock();
        if state.stopped || layer.is_closed() || layer.stored.is_complete() {
            return;
        }
        match state.find(layer.id) {
            Some(waiting) => waiting.requested_until = Some(until),
            None => state.push(layer.clone(), Some(until)),
        }
        drop(state);
        self.added.notify_one();
    }

    pub(crate) fn remove(&self, layer: LayerId) {
        let mut state = self.state.lock();
        state.waiting.retain(|waiting| waiting.layer.id != layer);
        state.images.retain(|_, layers| {
            layers.retain(|other| other.upgrade().is_some_and(|other| other.id != layer));
            !layers.is_empty()
        });
    }

    pub(crate) fn stop(&self) {
        let mut state = self.state.lock();
        *state = State {
            stopped: true,
            ..State::default()
        };
        self.added.notify_one();
    }

    /// Number of layers that wait, and of layers that were dropped.
    pub(crate) fn load(&self) -> (usize, u64) {
        (
            self.state.lock().waiting.len(),
            self.dropped.load(Ordering::Relaxed),
        )
    }

    /// Whether no layer waits; `None` once the queue was stopped.
    pub(crate) fn is_empty(&self) -> Option<bool> {
        let state = self.state.lock();
        (!state.stopped).then_some(state.waiting.is_empty())
    }

    /// Whether a client waits for a layer.
    pub(crate) fn is_requested(&self, now: Instant) -> bool {
        let state = self.state.lock();
        state
            .waiting
            .iter()
            .any(|waiting| waiting.is_requested(now))
    }

    /// Waits until a layer is added or requested, or the queue is stopped.
    pub(crate) async fn changed(&self) {
        self.added.notified().await;
    }

    /// Removes layers that are complete, and notes of the others what they wait for and how fast
    /// they arrive.
    pub(crate) fn review(&self, outlook: &Outlook<'_>) {
        let mut state = self.state.lock();
        let now = outlook.now;
        state.waiting.retain_mut(|waiting| {
            let progress = &waiting.layer.fill_progress;
            if waiting.layer.stored.is_complete() {
                progress.end();
                progress.set_state(FillState::Complete);
                progress.set_rate(0);
                return false;
            }
            if self.config.disable && !waiting.is_requested(now) {
                progress.set_state(FillState::Off);
                progress.set_rate(0);
                return false;
            }
            let (since, before) = waiting.sample;
            let passed = now.saturating_duration_since(since);
            if passed >= RATE_PERIOD {
                let stored = waiting.layer.stored.fetched_bytes();
                let millis = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX);
                let arrived = stored.saturating_sub(before).saturating_mul(1000);
                progress.set_rate(arrived / millis.max(1));
                waiting.sample = (now, stored);
            }
            let id = waiting.layer.id;
            progress.set_state(if outlook.work.is_throttled(id) {
                FillState::Throttled
            } else if (outlook.is_failing)(id) || now < waiting.not_before {
                FillState::Failing
            } else if !outlook.store_accepts || !has_room(&waiting.layer) {
                FillState::NoRoom
            } else if !outlook.may_fetch {
                FillState::Waiting
            } else if outlook.work.is_outstanding(id) {
                FillState::Filling
            } else {
                FillState::Queued
            });
            true
        });
        // What was complete and has lost spans, to make room or because they were damaged.
        let lost: Vec<_> = state.lost();
        for layer in lost {
            state.push(layer, None);
        }
    }

    /// Returns the next layer and the spans of its next batch.
    pub(crate) fn next(
        &self,
        now: Instant,
        work: &impl OutstandingWork,
    ) -> Option<(Arc<ServedLayer>, Vec<u32>)> {
        let mut state = self.state.lock();
        let in_use = state.images_in_use();
        let mut order: Vec<_> = state
            .waiting
            .iter()
            .map(|waiting| {
                let used = waiting.images.iter().any(|image| in_use.contains(image));
                let near = used && waiting.layer.reads.has_near(&waiting.layer, NEAR);
                let rank = (!waiting.is_requested(now), !used, !near, waiting.number);
                (rank, waiting.layer.id)
            })
            .collect();
        order.sort_unstable();
        for (_, id) in order {
            let Some(waiting) = state.find(id) else {
                continue;
            };
            if waiting.layer.stored.write_backlog() > MOST_UNSYNCED {
                // The disk is behind: what readers need must not wait for it.
                return None;
            }
            let rests = now < waiting.not_before || work.is_throttled(id);
            if rests || waiting.layer.stored.is_complete() {
                continue;
            }
            let stored = waiting.layer.stored.fetched_bytes();
            if waiting.before_batch == Some(stored) && !work.is_outstanding(id) {
                // The last batch brought nothing.
                waiting.failures += 1;
                let pause = FIRST_PAUSE
                    .saturating_mul(1 << waiting.failures.min(16))
                    .min(LONGEST_PAUSE);
                waiting.not_before = now + pause;
                waiting.before_batch = None;
                continue;
            }
            if waiting.before_batch.is_some_and(|before| before != stored) {
                waiting.failures = 0;
            }
            let layer = waiting.layer.clone();
            let batch = batch(&layer, |span| work.is_wanted(id, span));
            if batch.is_empty() {
                // All of it is being fetched, or there is no room: no failure of the layer.
                waiting.before_batch = None;
                continue;
            }
            waiting.before_batch = Some(stored);
            layer.fill_progress.begin();
            return Some((layer, batch));
        }
        None
    }
}

impl State {
    fn find(&mut self, layer: LayerId) -> Option<&mut Waiting> {
        let mut waiting = self.waiting.iter_mut();
        waiting.find(|waiting| waiting.layer.id == layer)
    }

    /// Notes that a layer belongs to an image.
    fn join(&mut self, layer: &Arc<ServedLayer>, image: Digest) {
        let layers = self.images.entry(image).or_default();
        layers.retain(|other| other.strong_count() > 0);
        let is_it = |other: &Weak<ServedLayer>| other.as_ptr() == Arc::as_ptr(layer);
        if !layers.iter().any(is_it) {
            layers.push(Arc::downgrade(layer));
        }
        if let Some(waiting) = self.find(layer.id)
            && !waiting.images.contains(&image)
        {
            waiting.images.push(image);
        }
    }

    fn push(&mut self, layer: Arc<ServedLayer>, requested_until: Option<Instant>) {
        let of = |layers: &Vec<Weak<ServedLayer>>| {
            layers
                .iter()
                .any(|other| other.as_ptr() == Arc::as_ptr(&layer))
        };
        let images = self.images.iter().filter(|(_, layers)| of(layers));
        let images = images.map(|(image, _)| *image).collect();
        let (number, now) = (self.next_number, Instant::now());
        self.next_number += 1;
        layer.fill_progress.set_state(FillState::Waiting);
        self.waiting.push(Waiting {
            images,
            number,
            requested_until,
            before_batch: None,
            failures: 0,
            not_before: now,
            sample: (now, layer.stored.fetched_bytes()),
            layer,
        });
    }

    fn remove_oldest(&mut self) -> Option<Arc<ServedLayer>> {
        let oldest = self.waiting.iter().enumerate();
        let (at, _) = oldest.min_by_key(|(_, waiting)| waiting.number)?;
        Some(self.waiting.remove(at).layer)
    }

    /// The images that containers read from.
    fn images_in_use(&self) -> HashSet<Digest> {
        let used = |layer: &Weak<ServedLayer>| {
            let layer = layer.upgrade();
            layer.is_some_and(|layer| layer.reads.was_read_within(IN_USE))
        };
        let images = self.images.iter();
        let images = images.filter(|(_, layers)| layers.iter().any(used));
        images.map(|(image, _)| *image).collect()
    }

    /// Layers that were complete, left the queue, and are not complete any more.
    fn lost(&self) -> Vec<Arc<ServedLayer>> {
        let mut lost: Vec<Arc<ServedLayer>> = Vec::new();
        for layer in self.images.values().flatten().filter_map(Weak::upgrade) {
            let was_complete = layer.fill_progress.state() == FillState::Complete;
            let known = |other: &Waiting| other.layer.id == layer.id;
            if was_complete
                && layer.stored.fetched_bytes() < layer.stored.size()
                && !self.waiting.iter().any(known)
                && !lost.iter().any(|other| other.id == layer.id)
            {
                lost.push(layer);
            }
        }
        lost
    }
}

const fn length(range: &Range<u64>) -> u64 {
    range.end.saturating_sub(range.start)
}

/// Whether the store has room for the first missing span of a layer.
fn has_room(layer: &ServedLayer) -> bool {
    let first = layer.stored.first_missing();
    let size = first.and_then(|span| layer.uncompressed(span.0));
    size.is_none_or(|range| length(&range) <= layer.stored.spare_room())
}

/// The spans that are fetched next: those nearest to what was read, then the others.
fn batch(layer: &ServedLayer, is_wanted: impl Fn(u32) -> bool) -> Vec<u32> {
    let (mut bytes, mut stored) = (0_u64, 0_u64);
    // Background spans do not evict spans that readers used.
    let room = layer.stored.spare_room();
    let mut missing: Vec<(u32, u32)> = {
        let distances = layer.reads.distances(layer.spans.len());
        let missing = layer.stored.missing().into_iter().flatten();
        let near = |span: u32| {
            let distance = distances.get(span as usize).copied().unwrap_or(u32::MAX);
            // What is not near is filled in order.
            if distance <= NEAR { distance } else { u32::MAX }
        };
        let missing = missing.filter(|span| !is_wanted(*span));
        missing.map(|span| (near(span), span)).collect()
    };
    missing.sort_unstable();
    missing
        .into_iter()
        .map(|(_, span)| span)
        .take_while(|span| {
            let Some(span) = layer.spans.get(SpanId(*span)) else {
                return false;
            };
            let before = bytes;
            bytes = bytes.saturating_add(length(&span.compressed));
            stored = stored.saturating_add(length(&span.uncompressed));
            stored <= room && (before == 0 || bytes <= BATCH)
        })
        .collect()
}
