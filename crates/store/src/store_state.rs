//! What all layers of a store share: which are open, how much is stored, what waits to become durable.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::clock::{later, ticks};
use crate::disk::Disk;
use crate::limits::{Limits, Reclaiming};
use crate::{LayerKey, StoredLayer};

/// The slot of one open layer; its lock is held while the layer is being opened or removed.
pub(crate) type LayerSlot = Arc<Mutex<Weak<StoredLayer>>>;

/// What all layers of a store share.
#[derive(Debug)]
pub(crate) struct StoreState {
    pub(crate) layers: Mutex<HashMap<LayerKey, LayerSlot>>,
    pub(crate) limits: Limits,
    pub(crate) disk: Disk,
    /// Uncompressed bytes in the spans of open layers.
    pub(crate) stored: AtomicU64,
    /// Uncompressed bytes that were written and are not durable yet.
    pub(crate) unsynced: AtomicU64,
    /// Bytes of layers that are on disk in another form, and count against the budget.
    pub(crate) elsewhere: AtomicU64,
    /// Uncompressed bytes that were evicted since the store was opened.
    pub(crate) evicted: AtomicU64,
    /// One reclaims at a time.
    pub(crate) reclaiming: Mutex<Reclaiming>,
    started: Instant,
    /// The last time that was given to a span that was written.
    clock: AtomicU32,
    pub(crate) dirty: Mutex<Dirty>,
    pub(crate) wake: Condvar,
}

/// What waits to become durable.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    /// Held, so that a layer is not dropped before it is durable.
    pub(crate) layers: HashMap<LayerKey, Arc<StoredLayer>>,
    pub(crate) bytes: u64,
    pub(crate) stop: bool,
}

impl StoreState {
    pub(crate) fn new(limits: Limits, disk: Disk) -> Self {
        Self {
            layers: Mutex::default(),
            limits,
            disk,
            stored: AtomicU64::new(0),
            unsynced: AtomicU64::new(0),
            elsewhere: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            reclaiming: Mutex::default(),
            started: Instant::now(),
            clock: AtomicU32::new(0),
            dirty: Mutex::default(),
            wake: Condvar::new(),
        }
    }

    /// The time on the store's clock, which no change of the system's time moves.
    pub(crate) fn now(&self) -> u32 {
        later(
            ticks(self.started.elapsed()),
            self.clock.load(Ordering::Relaxed),
        )
    }

    /// A time after all that were given to spans before.
    pub(crate) fn tick(&self) -> u32 {
        let now = ticks(self.started.elapsed());
        let next = |last: u32| Some(later(now, last.wrapping_add(1)));
        let last = self
            .clock
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        last.map_or(now, |last| later(now, last.wrapping_add(1)))
    }

    /// The slot of a layer.
    pub(crate) fn slot(&self, key: LayerKey) -> LayerSlot {
        let mut layers = self.layers.lock();
        // Entries without users are removed on the way.
        layers.retain(|other, slot| {
            *other == key
                || Arc::strong_count(slot) > 1
                || slot.try_lock().is_none_or(|layer| layer.strong_count() > 0)
        });
        layers.entry(key).or_default().clone()
    }

    /// The layers that are open.
    pub(crate) fn open_layers(&self) -> Vec<Arc<StoredLayer>> {
        let slots: Vec<_> = self.layers.lock().values().cloned().collect();
        // A layer that is just being opened has nothing to sync or reclaim: not waited for.
        slots
            .iter()
            .filter_map(|slot| slot.try_lock()?.upgrade())
            .collect()
    }

    /// Notes that a layer has something to make durable.
    pub(crate) fn written(&self, layer: Arc<StoredLayer>, bytes: u64) {
        let mut dirty = self.dirty.lock();
        if dirty.stop {
            // The store is closed; the holder of the layer syncs it or loses what it writes.
            return;
        }
        let known = dirty.layers.insert(layer.key(), layer);
        dirty.bytes = dirty.bytes.saturating_add(bytes);
        self.wake.notify_one();
        drop(dirty);
        drop(known);
    }

    /// Releases a layer that was removed.
    pub(crate) fn forget(&self, key: LayerKey) {
        let forgotten = self.dirty.lock().layers.remove(&key);
        drop(forgotten);
    }
}
