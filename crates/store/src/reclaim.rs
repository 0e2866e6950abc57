//! Freeing space when the store has a budget or the disk is full.
//!
//! Spans of layers that no container uses go first, then those of layers in use whose source has
//! answered a short time ago; of each kind the ones that were not used for longest. Neither what was
//! read in the last minutes of a layer in use, nor anything of a layer whose source fails, is evicted.
//! [`durability`](crate::durability) has the order of the steps, decision 0024 the reasons.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::clock::recent;
use crate::limits::Reclaiming;
use crate::standing::SourceHealth;
use crate::store_state::StoreState;
use crate::{StoreError, StoredLayer};

/// How often space is freed for one span while the file system still reports none.
const ROUNDS: usize = 4;
/// Shortest time between two searches when the last one found nothing.
const VAIN: Duration = Duration::from_millis(500);

/// The result of [`LayerStore::trim`](crate::LayerStore::trim).
#[derive(Debug, Default)]
#[must_use]
pub struct Trimmed {
    /// Bytes that were freed.
    pub freed: u64,
    /// Bytes that are still stored beyond the limit or in the reserve of the disk.
    pub excess: u64,
    /// Layers whose spans stayed because their source failed, or was not checked for a while.
    pub unproven: Vec<Arc<StoredLayer>>,
}

/// A span that may be evicted.
struct Candidate {
    /// Whether its layer is in use.
    in_use: bool,
    /// Time since it was used, on the store's clock.
    age: u32,
    /// Index of its layer.
    layer: usize,
    span: u32,
    len: u64,
}

impl StoreState {
    /// The limit of all layers, in whatever form.
    pub(crate) fn limit(&self) -> Option<u64> {
        let of_disk = match self.limits.percent {
            0 => None,
            percent => self
                .disk
                .total()
                .map(|total| total / 100 * u64::from(percent)),
        };
        match (self.limits.bytes, of_disk) {
            (Some(bytes), Some(of_disk)) => Some(bytes.min(of_disk)),
            (bytes, of_disk) => bytes.or(of_disk),
        }
    }

    /// The part of the limit that is left for spans.
    pub(crate) fn budget(&self) -> Option<u64> {
        let elsewhere = self.elsewhere.load(Ordering::Relaxed);
        Some(self.limit()?.saturating_sub(elsewhere))
    }

    /// Counts `len` more bytes, after freeing space for them if needed; `false`: there is no space.
    /// With `above`, they are counted even then.
    pub(crate) fn take_room(&self, len: u64, above: bool) -> bool {
        let Some(budget) = self.budget() else {
            self.stored.fetch_add(len, Ordering::AcqRel);
            return true;
        };
        let fits = |stored: u64| stored.checked_add(len).filter(|sum| *sum <= budget);
        let take = || {
            self.stored
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, fits)
                .is_ok()
        };
        if take() {
            return true;
        }
        if len > budget && !above {
            return false;
        }
        let mut reclaiming = self.reclaiming.lock();
        if take() {
            return true;
        }
        // A sixteenth more than needed, so that not every new span has to free space.
        let stored = self.stored.load(Ordering::Acquire);
        let wanted = stored
            .saturating_add(len)
            .saturating_sub(budget)
            .saturating_add(budget / 16);
        self.search(&mut reclaiming, wanted);
        if take() {
            return true;
        }
        if above {
            self.stored.fetch_add(len, Ordering::AcqRel);
            reclaiming.log_above(budget);
        }
        above
    }

    pub(crate) fn give_room(&self, len: u64) {
        self.stored.fetch_sub(len, Ordering::AcqRel);
    }

    /// Takes space on the disk above the reserve, after freeing it if needed.
    pub(crate) fn take_disk(&self, len: u64) -> bool {
        if self.disk.has_room(len) {
            return true;
        }
        // What is evicted may free less than its length: ends of spans share blocks with their neighbours.
        for _ in 0..ROUNDS {
            // Asks the file system again.
            let shortage = self.disk.shortage(len);
            let freed = match shortage {
                0 => 0,
                _ => self.reclaim_now(shortage.saturating_add(shortage / 16)),
            };
            if freed == 0 {
                break;
            }
        }
        let room = self.disk.has_room(len);
        if !room {
            self.disk.log_full();
        }
        room
    }

    /// Evicts about `wanted` bytes if they may go; returns how many went.
    pub(crate) fn reclaim_now(&self, wanted: u64) -> u64 {
        self.search(&mut self.reclaiming.lock(), wanted)
    }

    /// Bytes that are stored beyond the budget or in the reserve of the disk.
    pub(crate) fn excess(&self) -> u64 {
        let stored = self.stored.load(Ordering::Acquire);
        let beyond = self
            .budget()
            .map_or(0, |budget| stored.saturating_sub(budget));
        beyond.max(self.disk.shortage(0)).min(stored)
    }

    pub(crate) fn trim(&self) -> Trimmed {
        let excess = self.excess();
        if excess == 0 {
            return Trimmed::default();
        }
        let freed = {
            let mut reclaiming = self.reclaiming.lock();
            reclaiming.vain = None;
            self.search(&mut reclaiming, excess)
        };
        let excess = self.excess();
        let mut unproven = Vec::new();
        if excess > 0 {
            unproven = self.open_layers();
            unproven.retain(|layer| !may_go(layer));
        }
        Trimmed {
            freed,
            excess,
            unproven,
        }
    }

    fn search(&self, reclaiming: &mut Reclaiming, wanted: u64) -> u64 {
        if reclaiming.vain.is_some_and(|at| at.elapsed() < VAIN) {
            return 0;
        }
        let before = self.evicted.load(Ordering::Relaxed);
        if let Err(error) = self.reclaim(wanted) {
            tracing::warn!(error = %error, "cannot make room in the layer store");
        }
        let freed = self.evicted.load(Ordering::Relaxed).wrapping_sub(before);
        reclaiming.vain = (freed == 0).then(Instant::now);
        freed
    }

    fn reclaim(&self, wanted: u64) -> Result<(), StoreError> {
        let layers = self.open_layers();
        let mut candidates = self.candidates(&layers);
        let idle = candidates.iter().filter(|one| !one.in_use);
        if idle.map(|one| one.len).sum::<u64>() < wanted {
            // Only what is durable can be removed in a way that a crash cannot undo.
            for layer in layers.iter().filter(|layer| may_go(layer)) {
                layer.sync()?;
            }
            candidates = self.candidates(&layers);
        }
        candidates.sort_unstable_by_key(|one| (one.in_use, u32::MAX - one.age));
        let mut chosen: Vec<Vec<u32>> = vec![Vec::new(); layers.len()];
        let mut freed = 0_u64;
        for one in candidates {
            if freed >= wanted {
                break;
            }
            if let Some(spans) = chosen.get_mut(one.layer) {
                spans.push(one.span);
                freed = freed.saturating_add(one.len);
            }
        }
        for (layer, spans) in layers.iter().zip(&chosen) {
            layer.discard(spans)?;
        }
        Ok(())
    }

    fn candidates(&self, layers: &[Arc<StoredLayer>]) -> Vec<Candidate> {
        let (now, recent) = (self.now(), recent());
        let mut candidates = Vec::new();
        for (index, layer) in layers.iter().enumerate().filter(|(_, layer)| may_go(layer)) {
            let in_use = layer.standing.is_in_use();
            for (span, used, len) in layer.removable() {
                // The clock may wrap: age, not time, is compared.
                let age = now.wrapping_sub(used);
                if !in_use || age >= recent {
                    candidates.push(Candidate {
                        in_use,
                        age,
                        layer: index,
                        span,
                        len,
                    });
                }
            }
        }
        candidates
    }
}

/// Whether spans of a layer may go at all.
fn may_go(layer: &StoredLayer) -> bool {
    match layer.standing.source() {
        SourceHealth::Fails => false,
        SourceHealth::Answers => true,
        SourceHealth::Unknown => !layer.standing.is_in_use(),
    }
}
