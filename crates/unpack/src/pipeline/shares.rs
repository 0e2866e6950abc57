//! Pools of units (bytes of memory, requests, layers) that images share fairly.
//!
//! Freed units go to layers that are being unpacked before those that only download ahead, then to the
//! image that uses fewest, and within an image to its lowest layer. Layers that download ahead use at
//! most a quarter of a pool: however many there are, those that are being unpacked proceed.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// The layer that uses units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Claim {
    /// The image.
    pub(crate) image: u64,
    /// The layer, unique in the process.
    pub(crate) layer: u64,
    /// Its position in the image, from below.
    pub(crate) order: usize,
}

/// A pool of units.
#[derive(Debug)]
pub(crate) struct Shares {
    total: u64,
    /// Limit of layers that are not being unpacked.
    ahead: u64,
    /// Limit of one image.
    image: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    used: u64,
    peak: u64,
    layers: BTreeMap<u64, LayerUse>,
    waiting: Vec<Waiter>,
    next: u64,
}

#[derive(Debug)]
struct LayerUse {
    image: u64,
    units: u64,
    active: bool,
}

#[derive(Debug)]
struct Waiter {
    number: u64,
    claim: Claim,
    units: u64,
    grant: oneshot::Sender<()>,
}

/// Units of a pool. Dropping them returns them.
#[derive(Debug)]
pub(crate) struct Units {
    shares: Arc<Shares>,
    layer: u64,
    units: u64,
}

impl Drop for Units {
    fn drop(&mut self) {
        self.shares.release(self.layer, self.units);
    }
}

/// A position in the queue. Dropping it leaves the queue, or returns what was granted.
struct Ticket {
    shares: Arc<Shares>,
    number: u64,
    layer: u64,
    units: u64,
    taken: bool,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        let waited = {
            let mut state = self.shares.state.lock();
            let before = state.waiting.len();
            state.waiting.retain(|waiter| waiter.number != self.number);
            state.waiting.len() != before
        };
        let granted = if waited { 0 } else { self.units };
        self.shares.release(self.layer, granted);
    }
}

impl Shares {
    /// A pool in which all layers count as being unpacked.
    pub(crate) fn new(total: u64) -> Arc<Self> {
        Self::with_limits(total, u64::MAX, u64::MAX)
    }

    /// A pool of which layers that download ahead use at most a quarter: what they have waits for their
    /// turn, while those that are being unpacked could use it many times.
    pub(crate) fn with_little_ahead(total: u64) -> Arc<Self> {
        Self::with_limits(total, total / 4, u64::MAX)
    }

    /// A pool of which one image uses at most so many, so that another one finds the rest.
    pub(crate) fn with_limit_of_image(total: u64, image: u64) -> Arc<Self> {
        Self::with_limits(total, u64::MAX, image.max(1))
    }

    fn with_limits(total: u64, ahead: u64, image: u64) -> Arc<Self> {
        let total = total.max(1);
        Arc::new(Self {
            total,
            ahead,
            image,
            state: Mutex::default(),
        })
    }

    /// All units.
    pub(crate) const fn total(&self) -> u64 {
        self.total
    }

    /// Units in use: now, and at most so far.
    pub(crate) fn usage(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.used, state.peak)
    }

    /// Number of requests that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.state.lock().waiting.len()
    }

    /// Records that a layer is being unpacked.
    pub(crate) fn activate(&self, claim: Claim) {
        let mut state = self.state.lock();
        state.of(claim).active = true;
        self.grant(&mut state);
    }

    /// Forgets a layer that ends; units that it still has are returned as they are dropped.
    pub(crate) fn deactivate(&self, claim: Claim) {
        let mut state = self.state.lock();
        if state.layers.get(&claim.layer).is_some_and(|l| l.units == 0) {
            state.layers.remove(&claim.layer);
        } else if let Some(layer) = state.layers.get_mut(&claim.layer) {
            layer.active = false;
        }
        self.grant(&mut state);
    }

    /// Waits for units. More than the pool has are granted when nothing else is in use.
    pub(crate) async fn acquire(self: &Arc<Self>, claim: Claim, units: u64) -> Units {
        let (granted, mut ticket) = {
            let mut state = self.state.lock();
            let number = state.next;
            state.next += 1;
            let (grant, granted) = oneshot::channel();
            state.waiting.push(Waiter {
                number,
                claim,
                units,
                grant,
            });
            self.grant(&mut state);
            let ticket = Ticket {
                shares: Arc::clone(self),
                number,
                layer: claim.layer,
                units,
                taken: false,
            };
            (granted, ticket)
        };
        // The sender is dropped only after it was used.
        let _ = granted.await;
        ticket.taken = true;
        Units {
            shares: Arc::clone(self),
            layer: claim.layer,
            units,
        }
    }

    fn release(&self, layer: u64, units: u64) {
        let mut state = self.state.lock();
        state.used = state.used.saturating_sub(units);
        if let Some(known) = state.layers.get_mut(&layer) {
            known.units = known.units.saturating_sub(units);
            if known.units == 0 && !known.active {
                state.layers.remove(&layer);
            }
        }
        self.grant(&mut state);
    }

    /// Grants what fits, the most urgent first. What does not fit holds up those behind it, but not if
    /// it is only ahead.
    fn grant(&self, state: &mut State) {
        while let Some(at) = self.next(state) {
            let waiter = state.waiting.swap_remove(at);
            state.used = state.used.saturating_add(waiter.units);
            state.peak = state.peak.max(state.used);
            let layer = state.of(waiter.claim);
            layer.units = layer.units.saturating_add(waiter.units);
            // If the waiter has left, its ticket returns the units.
            let _ = waiter.grant.send(());
        }
    }

    /// The waiter whose turn it is, if it fits.
    fn next(&self, state: &State) -> Option<usize> {
        let ahead = |layer: &&LayerUse| !layer.active;
        let used_ahead: u64 = state.layers.values().filter(ahead).map(|l| l.units).sum();
        let of_image = |image: u64| -> u64 {
            let layers = state.layers.values();
            layers.filter(|l| l.image == image).map(|l| l.units).sum()
        };
        let fits_ahead = |waiter: &Waiter| used_ahead.saturating_add(waiter.units) <= self.ahead;
        let fits_image = |waiter: &Waiter| {
            of_image(waiter.claim.image).saturating_add(waiter.units) <= self.image
        };
        let urgency = |waiter: &Waiter| {
            let active = state.is_active(waiter.claim);
            let claim = waiter.claim;
            (!active, of_image(claim.image), claim.order, waiter.number)
        };
        let candidates = state.waiting.iter().enumerate();
        let (at, best) = candidates
            .filter(|(_, waiter)| state.is_active(waiter.claim) || fits_ahead(waiter))
            .filter(|(_, waiter)| fits_image(waiter))
            .min_by_key(|(_, waiter)| urgency(waiter))?;
        let fits = state.used == 0 || state.used.saturating_add(best.units) <= self.total;
        fits.then_some(at)
    }
}

impl State {
    fn of(&mut self, claim: Claim) -> &mut LayerUse {
        self.layers.entry(claim.layer).or_insert(LayerUse {
            image: claim.image,
            units: 0,
            active: false,
        })
    }

    fn is_active(&self, claim: Claim) -> bool {
        self.layers
            .get(&claim.layer)
            .is_some_and(|layer| layer.active)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use futures::FutureExt as _;
    use futures::future::LocalBoxFuture;

    use super::*;

    const fn claim(image: u64, layer: u64, order: usize) -> Claim {
        Claim {
            image,
            layer,
            order,
        }
    }

    #[test]
    fn freed_units_go_to_the_image_that_uses_fewest_and_to_its_lowest_layer() {
        let shares = Shares::new(3);
        let now = |claim| shares.acquire(claim, 1).now_or_never().unwrap();
        let held = [
            now(claim(1, 10, 0)),
            now(claim(1, 11, 1)),
            now(claim(1, 12, 2)),
        ];
        let mut third = Box::pin(shares.acquire(claim(1, 13, 3), 1));
        let mut upper = Box::pin(shares.acquire(claim(2, 21, 1), 1));
        let mut lower = Box::pin(shares.acquire(claim(2, 20, 0), 1));
        for waiting in [&mut third, &mut upper, &mut lower] {
            assert!(waiting.now_or_never().is_none());
        }
        let [first, second, _last] = held;
        drop(first);
        let _lower = lower.now_or_never().unwrap();
        assert!((&mut upper).now_or_never().is_none());
        drop(second);
        // Both images have one now: the order decides.
        let _upper = upper.now_or_never().unwrap();
        assert!(third.now_or_never().is_none());
        assert_eq!(shares.usage(), (3, 3));
        assert_eq!(shares.waiting(), 0);
    }

    #[test]
    fn layers_ahead_leave_three_quarters_to_those_that_are_unpacked() {
        let shares = Shares::with_little_ahead(8);
        // Not even if nothing else is in use: those that are unpacked could wait for it forever.
        assert!(shares.acquire(claim(1, 9, 9), 3).now_or_never().is_none());
        let one = shares.acquire(claim(1, 2, 1), 2).now_or_never().unwrap();
        assert!(shares.acquire(claim(1, 3, 2), 1).now_or_never().is_none());
        shares.activate(claim(1, 1, 0));
        let two = shares.acquire(claim(1, 1, 0), 6).now_or_never().unwrap();
        // It is being unpacked itself now, and no longer in the way of others.
        shares.activate(claim(1, 2, 1));
        drop(two);
        let _three = shares.acquire(claim(1, 3, 2), 2).now_or_never().unwrap();
        drop(one);
        assert_eq!(shares.usage(), (2, 8));
    }

    #[test]
    fn an_image_leaves_some_to_another_one_that_begins_later() {
        let shares = Shares::with_limit_of_image(3, 2);
        let now = |claim| shares.acquire(claim, 1).now_or_never();
        let _held = [now(claim(1, 1, 0)).unwrap(), now(claim(1, 2, 1)).unwrap()];
        let mut third = Box::pin(shares.acquire(claim(1, 3, 2), 1));
        assert!((&mut third).now_or_never().is_none());
        // What waits at the limit of its image does not hold up the other.
        let other = now(claim(2, 4, 0)).unwrap();
        drop(other);
        assert!((&mut third).now_or_never().is_none());
    }

    type Waiting<'s> = (Claim, LocalBoxFuture<'s, Units>);

    fn waits(shares: &Arc<Shares>, claim: Claim) -> Waiting<'_> {
        (claim, shares.acquire(claim, 1).boxed_local())
    }

    /// Takes what is granted. Each layer waits for the next as soon as it has one, as downloads do.
    fn take<'s>(
        shares: &'s Arc<Shares>,
        waiting: &mut [Waiting<'s>],
        held: &mut VecDeque<(u64, Units)>,
    ) {
        for (claim, granted) in waiting {
            while let Some(units) = granted.now_or_never() {
                held.push_back((claim.image, units));
                (*claim, *granted) = waits(shares, *claim);
            }
        }
    }

    #[test]
    fn two_images_share_evenly_however_many_layers_they_have_and_whichever_began_first() {
        let shares = Shares::with_little_ahead(20);
        let many = [1, 2, 3, 4].map(|layer| claim(1, layer, 0));
        let one = claim(2, 5, 0);
        for layer in many.into_iter().chain([one]) {
            shares.activate(layer);
        }
        let mut waiting: Vec<_> = many.map(|layer| waits(&shares, layer)).into();
        let mut held = VecDeque::new();
        take(&shares, &mut waiting, &mut held);
        assert!(held.len() == 20 && held.iter().all(|(image, _)| *image == 1));
        waiting.push(waits(&shares, one));
        take(&shares, &mut waiting, &mut held);
        for freed in 0..100 {
            held.pop_front();
            take(&shares, &mut waiting, &mut held);
            let of_other = held.iter().filter(|(image, _)| *image == 2).count();
            // All that is freed at first, and half from then on.
            assert_eq!(of_other, (freed + 1).min(10), "{freed}");
        }
    }

    #[test]
    fn one_that_leaves_the_queue_returns_what_it_was_granted() {
        let shares = Shares::new(2);
        let all = shares.acquire(claim(1, 1, 0), 2).now_or_never().unwrap();
        let mut waiting = Box::pin(shares.acquire(claim(1, 2, 0), 5));
        assert!((&mut waiting).now_or_never().is_none());
        drop(all);
        // Granted, and dropped before it noticed.
        drop(waiting);
        assert_eq!(shares.usage().0, 0);
        // More than there are: alone.
        let _large = shares.acquire(claim(1, 3, 0), 9).now_or_never().unwrap();
    }
}
