//! Whose turn it is: the layers of one priority share the requests by bytes.
//!
//! Each layer has a clock that advances by the bytes that are requested for it, and the layer whose
//! clock is furthest behind is next. A layer that begins to wait starts at the clock of the last
//! turn: it owes nothing for the time in which it did not wait, and is owed nothing. So the bytes
//! of two layers that wait all the time differ by at most the largest request of either.

use std::collections::BTreeMap;

use crate::span_key::LayerId;

/// The turns of one priority.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// The clocks of the layers that wait.
    waiting: BTreeMap<LayerId, u64>,
    /// The clocks of layers that stopped waiting ahead of the last turn.
    ahead: BTreeMap<LayerId, u64>,
    /// The clock of the layer that had the last turn, before it.
    last: u64,
}

impl Turns {
    /// Adds a layer, unless it takes part already.
    pub(super) fn join(&mut self, layer: LayerId) {
        let clock = self.ahead.remove(&layer).unwrap_or_default().max(self.last);
        self.waiting.entry(layer).or_insert(clock);
    }

    /// Ends the part of a layer that waits no longer.
    pub(super) fn leave(&mut self, layer: LayerId) {
        if let Some(clock) = self.waiting.remove(&layer)
            && clock > self.last
        {
            self.ahead.insert(layer, clock);
        }
    }

    /// Forgets a layer.
    pub(super) fn forget(&mut self, layer: LayerId) {
        self.waiting.remove(&layer);
        self.ahead.remove(&layer);
    }

    /// The layers that wait, in the order of their turns.
    pub(super) fn in_order(&self) -> Vec<LayerId> {
        let mut order: Vec<_> = self.waiting.iter().map(|(id, at)| (*at, *id)).collect();
        order.sort_unstable();
        order.into_iter().map(|(_, id)| id).collect()
    }

    /// Charges a layer for its turn.
    pub(super) fn charge(&mut self, layer: LayerId, bytes: u64) {
        if let Some(clock) = self.waiting.get_mut(&layer) {
            self.last = self.last.max(*clock);
            *clock = clock.saturating_add(bytes.max(1));
        }
        let last = self.last;
        self.ahead.retain(|_, clock| *clock > last);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LAYERS: u64 = 4;
    const LARGEST: u64 = 32;

    proptest! {
        /// Layers 0 and 1 wait all the time; the others come and go.
        #[test]
        fn layers_that_wait_get_the_same_number_of_bytes(
            turns in prop::collection::vec((1..=LARGEST, 2..LAYERS, any::<bool>()), 0..400),
        ) {
            let mut shared = Turns::default();
            let mut bytes = [0_u64; 4];
            shared.join(LayerId(0));
            shared.join(LayerId(1));
            for (size, other, waits) in turns {
                match waits {
                    true => shared.join(LayerId(other)),
                    false => shared.leave(LayerId(other)),
                }
                let next = shared.in_order()[0];
                shared.charge(next, size);
                bytes[usize::try_from(next.0).unwrap()] += size;
                let [first, second, ..] = bytes;
                prop_assert!(first.abs_diff(second) <= LARGEST, "{bytes:?}");
                // Coming and going gains nothing.
                let most = bytes[2..].iter().max().copied().unwrap();
                prop_assert!(most <= first.max(second) + 2 * LARGEST, "{bytes:?}");
            }
        }
    }
}
