//! Making room when the store has a budget: the spans that were not used for longest go first.

use std::sync::atomic::Ordering;

use crate::StoreError;
use crate::shared::Shared;

impl Shared {
    /// Counts `len` more bytes, after making room for them if need be; `false`: there is no room.
    pub(crate) fn take_room(&self, len: u64) -> bool {
        let Some(budget) = self.budget else {
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
        if len > budget {
            return false;
        }
        let _one = self.reclaiming.lock();
        if take() {
            return true;
        }
        // A sixteenth more than needed, so that not every span that comes has to make room.
        let stored = self.stored.load(Ordering::Acquire);
        let wanted = stored
            .saturating_add(len)
            .saturating_sub(budget)
            .saturating_add(budget / 16);
        if let Err(error) = self.reclaim(wanted) {
            tracing::warn!(error = %error, "cannot make room in the layer store");
        }
        take()
    }

    pub(crate) fn give_room(&self, len: u64) {
        self.stored.fetch_sub(len, Ordering::AcqRel);
    }

    fn reclaim(&self, wanted: u64) -> Result<(), StoreError> {
        let layers = self.open_layers();
        for layer in &layers {
            // Only what is durable can be removed in a way that a crash cannot undo.
            layer.sync()?;
        }
        let now = self.now();
        let mut candidates: Vec<(u32, usize, u32, u64)> = Vec::new();
        for (index, layer) in layers.iter().enumerate() {
            for (span, used, len) in layer.removable() {
                // The clock may wrap: age, not time, is compared.
                candidates.push((now.wrapping_sub(used), index, span, len));
            }
        }
        candidates.sort_unstable_by(|a, b| b.cmp(a));
        let mut chosen: Vec<Vec<u32>> = vec![Vec::new(); layers.len()];
        let mut freed = 0_u64;
        for (_, index, span, len) in candidates {
            if freed >= wanted {
                break;
            }
            if let Some(spans) = chosen.get_mut(index) {
                spans.push(span);
                freed = freed.saturating_add(len);
            }
        }
        for (layer, spans) in layers.iter().zip(&chosen) {
            layer.discard(spans)?;
        }
        Ok(())
    }
}
