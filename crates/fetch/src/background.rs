//! Filling layers while nobody reads.
//!
//! After `silence_period` without a mount or a read that needed the network, each `fetch_period` may
//! start one batch of the layer at the front of the queue, if the batch before is done. A layer whose
//! batch brought nothing is left alone for a while.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use soci_ztoc::SpanId;
use tokio::sync::Notify;

use crate::config::{BackgroundConfig, DropPolicy};
use crate::core::Core;
use crate::layer::Layer;
use crate::priority::Priority;

/// The compressed bytes of a batch.
const BATCH: u64 = 32 << 20;
/// The longest time for which a layer is left alone.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// The layers that wait to be filled.
pub(crate) struct Queue {
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
    layer: Arc<Layer>,
    /// What was here when the last batch started.
    fetched: u64,
    failures: u32,
    not_before: Instant,
}

impl Queue {
    pub(crate) fn new(config: BackgroundConfig) -> Self {
        Self {
            config,
            waiting: Mutex::default(),
            dropped: AtomicU64::new(0),
            added: Notify::new(),
        }
    }

    /// Adds a layer, if there is room or room is made.
    pub(crate) fn add(&self, layer: Arc<Layer>) {
        let mut state = self.waiting.lock();
        let known = state
            .layers
            .iter()
            .any(|other| other.layer.number == layer.number);
        if self.config.disable || state.stopped || known || layer.is_closed() {
            return;
        }
        let full = self
            .config
            .max_queue_size
            .is_some_and(|most| state.layers.len() >= most);
        if full {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            let gone = match self.config.drop_policy {
                DropPolicy::Newest => None,
                DropPolicy::Oldest => state.layers.pop_front(),
            };
            let Some(gone) = gone else {
                tracing::warn!(layer = %layer.stored.digest(), "the background queue is full: this layer is filled only as it is read");
                return;
            };
            tracing::warn!(layer = %gone.layer.stored.digest(), "the background queue is full: this layer is filled only as it is read");
        }
        state.layers.push_back(Waiting {
            layer,
            fetched: u64::MAX,
            failures: 0,
            not_before: Instant::now(),
        });
        self.added.notify_one();
    }

    pub(crate) fn remove(&self, layer: u64) {
        self.waiting
            .lock()
            .layers
            .retain(|waiting| waiting.layer.number != layer);
    }

    pub(crate) fn stop(&self) {
        let mut state = self.waiting.lock();
        state.stopped = true;
        state.layers.clear();
        self.added.notify_one();
    }

    /// How many layers wait, and how many found no room.
    pub(crate) fn load(&self) -> (usize, u64) {
        (
            self.waiting.lock().layers.len(),
            self.dropped.load(Ordering::Relaxed),
        )
    }

    /// The next batch.
    fn next(&self) -> Option<(Arc<Layer>, Vec<u32>)> {
        let mut state = self.waiting.lock();
        let now = Instant::now();
        for _ in 0..state.layers.len() {
            let mut waiting = state.layers.pop_front()?;
            if waiting.layer.stored.is_complete() {
                waiting.layer.filling.end();
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
            layer.filling.begin();
            return Some((layer, batch));
        }
        None
    }
}

fn batch(layer: &Layer) -> Vec<u32> {
    let (mut bytes, mut stored) = (0_u64, 0_u64);
    // What readers have used is not pushed out for what nobody has asked for.
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

/// Runs until the fetcher is gone or stopped.
pub(crate) async fn run(core: Weak<Core>) {
    let period = match core.upgrade() {
        Some(core) if !core.config.background.disable => core.config.background.fetch_period,
        _ => return,
    };
    loop {
        tokio::time::sleep(period.max(Duration::from_millis(1))).await;
        let Some(core) = core.upgrade() else { return };
        let (empty, stopped) = {
            let state = core.background.waiting.lock();
            (state.layers.is_empty(), state.stopped)
        };
        if stopped {
            return;
        }
        if empty {
            // Wakes up now and then to see whether the fetcher still exists.
            let _ = tokio::time::timeout(Duration::from_secs(60), core.background.added.notified())
                .await;
            continue;
        }
        if !core.is_quiet() || !core.store_takes_more() {
            continue;
        }
        // What a reader's arrival held up may go on.
        core.pump();
        if core.schedule.lock().in_background() {
            continue;
        }
        if let Some((layer, spans)) = core.background.next() {
            for span in spans {
                core.schedule
                    .lock()
                    .want(&layer, span, Priority::Background, None);
            }
            core.pump();
        }
    }
}
