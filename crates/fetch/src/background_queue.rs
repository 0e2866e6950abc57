//! The queue of layers that are filled in the background, and their next batches.
//!
//! A layer whose batch brought nothing is skipped for a while.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use soci_ztoc::SpanId;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config::{BackgroundConfig, DropPolicy};
use crate::served_layer::ServedLayer;
use crate::span_key::LayerId;

/// Size of a batch in compressed bytes.
const BATCH: u64 = 32 << 20;
/// Longest time for which a layer is skipped.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// The layers that are to be filled.
pub(crate) struct BackgroundQueue {
    config: BackgroundConfig,
    waiting: Mutex<State>,
    dropped: AtomicU64,
    added: Notify,
}

#[derive(Default)]
struct State {
    layers: VecDeque<Waiting>,
    stopped: bool,
}

struct Waiting {
    layer: Arc<ServedLayer>,
    /// Stored bytes when the last batch started.
    fetched: u64,
    failures: u32,
    not_before: Instant,
}

impl BackgroundQueue {
    pub(crate) fn new(config: BackgroundConfig) -> Self {
        Self {
            config,
            waiting: Mutex::default(),
            dropped: AtomicU64::new(0),
            added: Notify::new(),
        }
    }

    /// Adds a layer. If the queue is full, it or another layer is dropped.
    pub(crate) fn add(&self, layer: Arc<ServedLayer>) {
        let mut state = self.waiting.lock();
        let known = state.layers.iter().any(|other| other.layer.id == layer.id);
        if self.config.disable || state.stopped || known || layer.is_closed() {
            return;
        }
        let full = self
            .config
            .max_queue_size
            .is_some_and(|most| state.layers.len() >= most);
        if full {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            let oldest = match self.config.drop_policy {
                DropPolicy::Newest => None,
                DropPolicy::Oldest => state.layers.pop_front(),
            };
            let dropped = oldest.as_ref().map_or(&layer, |oldest| &oldest.layer);
            tracing::warn!(layer = %dropped.stored.digest(), "background queue is full, layer not filled in background");
            if oldest.is_none() {
                return;
            }
        }
        state.layers.push_back(Waiting {
            layer,
            fetched: u64::MAX,
            failures: 0,
            not_before: Instant::now(),
        });
        self.added.notify_one();
    }

    pub(crate) fn remove(&self, layer: LayerId) {
        self.waiting
            .lock()
            .layers
            .retain(|waiting| waiting.layer.id != layer);
    }

    pub(crate) fn stop(&self) {
        let mut state = self.waiting.lock();
        state.stopped = true;
        state.layers.clear();
        self.added.notify_one();
    }

    /// Number of layers that wait, and of layers that were dropped.
    pub(crate) fn load(&self) -> (usize, u64) {
        (
            self.waiting.lock().layers.len(),
            self.dropped.load(Ordering::Relaxed),
        )
    }

    /// Whether no layer waits; `None` once the queue was stopped.
    pub(crate) fn is_empty(&self) -> Option<bool> {
        let state = self.waiting.lock();
        (!state.stopped).then_some(state.layers.is_empty())
    }

    /// Waits until a layer is added or the queue is stopped.
    pub(crate) async fn changed(&self) {
        self.added.notified().await;
    }

    /// Returns the next layer and the spans of its next batch.
    pub(crate) fn next(&self) -> Option<(Arc<ServedLayer>, Vec<u32>)> {
        let mut state = self.waiting.lock();
        let now = Instant::now();
        for _ in 0..state.layers.len() {
            let mut waiting = state.layers.pop_front()?;
            if waiting.layer.stored.is_complete() {
                waiting.layer.fill_progress.end();
                continue;
            }
            if now < waiting.not_before {
                state.layers.push_back(waiting);
                continue;
            }
            let fetched = waiting.layer.stored.fetched_bytes();
            if fetched == waiting.fetched {
                // The last batch brought nothing.
                waiting.failures += 1;
                let pause = self.config.fetch_period.max(Duration::from_millis(100));
                let pause = pause
                    .saturating_mul(1 << waiting.failures.min(16))
                    .min(LONGEST_PAUSE);
                waiting.not_before = now + pause;
                waiting.fetched = u64::MAX;
                state.layers.push_back(waiting);
                continue;
            }
            if waiting.fetched != u64::MAX {
                waiting.failures = 0;
            }
            waiting.fetched = fetched;
            let (layer, batch) = (waiting.layer.clone(), batch(&waiting.layer));
            state.layers.push_front(waiting);
            layer.fill_progress.begin();
            return Some((layer, batch));
        }
        None
    }
}

fn batch(layer: &ServedLayer) -> Vec<u32> {
    let (mut bytes, mut stored) = (0_u64, 0_u64);
    // Background spans do not evict spans that readers used.
    let room = layer.stored.spare_room();
    let length = |range: Range<u64>| range.end.saturating_sub(range.start);
    let missing = layer.stored.missing().into_iter().flatten();
    missing
        .take_while(|span| {
            let Some(span) = layer.spans.get(SpanId(*span)) else {
                return false;
            };
            let before = bytes;
            bytes = bytes.saturating_add(length(span.compressed));
            stored = stored.saturating_add(length(span.uncompressed));
            stored <= room && (before == 0 || bytes <= BATCH)
        })
        .collect()
}
