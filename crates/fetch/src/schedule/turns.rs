//! Whose turn it is: what waits with one priority shares the requests by bytes.
//!
//! Each sharer has a clock that advances by the bytes that are requested for it, and the sharer whose
//! clock is furthest behind is next. One that begins to wait starts at the clock of the last turn: it
//! owes nothing for the time in which it did not wait, and is owed nothing. So the bytes of two sharers
//! that wait all the time differ by at most the largest request of either.
//!
//! A sharer is a layer, or all the layers that are fetched for one start of an image: an image of many
//! layers gets no more than one of few. The layers of a start share its turns in the same way.

use std::collections::BTreeMap;

use crate::span_key::{LayerId, StartId};

/// What has a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Sharer {
    Layer(LayerId),
    Start(StartId),
}

/// The turns of one priority.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// The starts that layers are fetched for.
    starts: BTreeMap<LayerId, StartId>,
    sharers: Clocks<Sharer>,
    /// The layers of each sharer that waits.
    layers: BTreeMap<Sharer, Clocks<LayerId>>,
}

impl Turns {
    /// From now on a layer shares the turns of a start.
    pub(super) fn share(&mut self, layer: LayerId, start: StartId) {
        let waits = self.leave(layer);
        self.starts.insert(layer, start);
        if waits {
            self.join(layer);
        }
    }

    /// Adds a layer, unless it takes part already.
    pub(super) fn join(&mut self, layer: LayerId) {
        let sharer = self.sharer(layer);
        self.sharers.join(sharer);
        self.layers.entry(sharer).or_default().join(layer);
    }

    /// Ends the part of a layer that waits no longer. Returns whether it has waited.
    pub(super) fn leave(&mut self, layer: LayerId) -> bool {
        let sharer = self.sharer(layer);
        let Some(layers) = self.layers.get_mut(&sharer) else {
            return false;
        };
        let waited = layers.leave(layer);
        if layers.waiting.is_empty() {
            self.layers.remove(&sharer);
            self.sharers.leave(sharer);
        }
        waited
    }

    /// Forgets a layer.
    pub(super) fn forget(&mut self, layer: LayerId) {
        self.leave(layer);
        self.starts.remove(&layer);
        self.sharers.ahead.remove(&Sharer::Layer(layer));
    }

    /// The layers that wait, in the order of their turns.
    pub(super) fn in_order(&self) -> Vec<LayerId> {
        let sharers = self.sharers.in_order().into_iter();
        let layers = sharers.filter_map(|sharer| self.layers.get(&sharer));
        layers.flat_map(Clocks::in_order).collect()
    }

    /// Charges a layer for its turn.
    pub(super) fn charge(&mut self, layer: LayerId, bytes: u64) {
        let sharer = self.sharer(layer);
        self.sharers.charge(sharer, bytes);
        if let Some(layers) = self.layers.get_mut(&sharer) {
            layers.charge(layer, bytes);
        }
    }

    fn sharer(&self, layer: LayerId) -> Sharer {
        let start = self.starts.get(&layer).copied();
        start.map_or(Sharer::Layer(layer), Sharer::Start)
    }
}

/// The clocks of what shares turns.
#[derive(Debug)]
struct Clocks<K> {
    /// The clocks of those that wait.
    waiting: BTreeMap<K, u64>,
    /// The clocks of those that stopped waiting ahead of the last turn.
    ahead: BTreeMap<K, u64>,
    /// The clock of the one that had the last turn, before it.
    last: u64,
}

impl<K> Default for Clocks<K> {
    fn default() -> Self {
        Self {
            waiting: BTreeMap::new(),
            ahead: BTreeMap::new(),
            last: 0,
        }
    }
}

impl<K: Copy + Ord> Clocks<K> {
    fn join(&mut self, key: K) {
        let clock = self.ahead.remove(&key).unwrap_or_default().max(self.last);
        self.waiting.entry(key).or_insert(clock);
    }

    fn leave(&mut self, key: K) -> bool {
        let clock = self.waiting.remove(&key);
        if let Some(clock) = clock
            && clock > self.last
        {
            self.ahead.insert(key, clock);
        }
        clock.is_some()
    }

    fn in_order(&self) -> Vec<K> {
        let mut order: Vec<_> = self.waiting.iter().map(|(key, at)| (*at, *key)).collect();
        order.sort_unstable();
        order.into_iter().map(|(_, key)| key).collect()
    }

    fn charge(&mut self, key: K, bytes: u64) {
        if let Some(clock) = self.waiting.get_mut(&key) {
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

    /// Charges the layer that is next for so many bytes; returns which it is.
    fn turn(turns: &mut Turns, bytes: u64) -> u64 {
        let next = turns.in_order()[0];
        turns.charge(next, bytes);
        next.0
    }

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
                    false => drop(shared.leave(LayerId(other))),
                }
                let next = turn(&mut shared, size);
                bytes[usize::try_from(next).unwrap()] += size;
                let [first, second, ..] = bytes;
                prop_assert!(first.abs_diff(second) <= LARGEST, "{bytes:?}");
                // Coming and going gains nothing.
                let most = bytes[2..].iter().max().copied().unwrap();
                prop_assert!(most <= first.max(second) + 2 * LARGEST, "{bytes:?}");
            }
        }

        /// An image of one layer, one of three of which two come and go, and a layer of none.
        #[test]
        fn images_that_wait_get_the_same_number_of_bytes_however_many_layers_they_have(
            turns in prop::collection::vec((1..=LARGEST, 2..LAYERS, any::<bool>()), 0..400),
            late in 0..400_usize,
        ) {
            let mut shared = Turns::default();
            let (one, three, none) = (LayerId(0), LayerId(1), LayerId(4));
            shared.join(one);
            shared.join(three);
            shared.join(none);
            shared.share(one, StartId(1));
            let mut bytes = [0_u64; 5];
            for (number, (size, other, waits)) in turns.into_iter().enumerate() {
                if number == 0 {
                    (1..LAYERS).for_each(|layer| shared.share(LayerId(layer), StartId(2)));
                }
                match waits {
                    true => shared.join(LayerId(other)),
                    false => drop(shared.leave(LayerId(other))),
                }
                if number == late {
                    // What is forgotten has no turn.
                    shared.forget(LayerId(other));
                    prop_assert!(!shared.in_order().contains(&LayerId(other)));
                    shared.share(LayerId(other), StartId(2));
                }
                let next = turn(&mut shared, size);
                bytes[usize::try_from(next).unwrap()] += size;
                let images = [bytes[0], bytes[1] + bytes[2] + bytes[3], bytes[4]];
                let least = images.iter().min().copied().unwrap();
                prop_assert!(images.iter().all(|image| image - least <= LARGEST), "{bytes:?}");
            }
        }
    }

    #[test]
    fn layers_of_an_image_share_its_turns() {
        let mut shared = Turns::default();
        for layer in 0..3 {
            shared.share(LayerId(layer), StartId(1));
            shared.join(LayerId(layer));
        }
        let had: Vec<_> = (0..6).map(|_| turn(&mut shared, 1)).collect();
        assert_eq!(had, [0, 1, 2, 0, 1, 2]);
        assert!(shared.leave(LayerId(1)) && !shared.leave(LayerId(1)));
        let had: Vec<_> = (0..4).map(|_| turn(&mut shared, 1)).collect();
        assert_eq!(had, [0, 2, 0, 2]);
        for layer in 0..3 {
            shared.forget(LayerId(layer));
        }
        assert!(shared.layers.is_empty() && shared.starts.is_empty());
    }
}
