//! The memory budget: a semaphore over bytes that serves the most urgent first.
//!
//! A quarter is kept for demand. Who wants more than there is at all gets it when nothing else is in
//! use, so that a span of any size can be handled, alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::priority::Priority;

/// The budget.
#[derive(Debug)]
pub(crate) struct Budget {
    total: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    used: u64,
    peak: u64,
    next: u64,
    waiting: BTreeMap<(Priority, u64), Waiter>,
}

#[derive(Debug)]
struct Waiter {
    bytes: u64,
    what: What,
    grant: oneshot::Sender<()>,
}

/// What the memory is for: a layer's number and its span.
pub(crate) type What = (u64, u32);

/// Bytes of the budget; given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.release(self.bytes);
    }
}

/// A place in the queue. Dropped, it leaves the queue or gives back what it got.
struct Place {
    budget: Arc<Budget>,
    number: u64,
    bytes: u64,
    taken: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        let left = self.budget.state.lock().leave(self.number);
        // Who stood behind it may fit now.
        self.budget.release(if left { 0 } else { self.bytes });
    }
}

impl Budget {
    pub(crate) fn new(total: u64) -> Arc<Self> {
        Arc::new(Self {
            total,
            state: Mutex::default(),
        })
    }

    /// Does anybody wait?
    pub(crate) fn is_waited_for(&self) -> bool {
        !self.state.lock().waiting.is_empty()
    }

    /// What of a layer somebody waits for.
    pub(crate) fn waited_for(&self, layer: u64) -> Vec<What> {
        let state = self.state.lock();
        let whats = state.waiting.values().map(|waiter| waiter.what);
        whats.filter(|what| what.0 == layer).collect()
    }

    /// Bytes in use now and at most.
    pub(crate) fn usage(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.used, state.peak)
    }

    /// What it is for has become more urgent: whoever waits for that waits so much less.
    pub(crate) fn hasten(&self, what: What, priority: Priority) {
        let hastened = self.state.lock().hasten(what, priority);
        if hastened {
            self.release(0);
        }
    }

    /// Waits for `bytes` bytes.
    pub(crate) async fn acquire(
        self: &Arc<Self>,
        bytes: u64,
        priority: Priority,
        what: What,
    ) -> Permit {
        let (granted, mut place) = {
            let mut state = self.state.lock();
            let more_urgent = state
                .waiting
                .first_key_value()
                .is_some_and(|((first, _), _)| *first <= priority);
            if !more_urgent && self.fits(&state, bytes, priority) {
                state.take(bytes);
                let budget = self.clone();
                return Permit { budget, bytes };
            }
            let number = state.next;
            state.next += 1;
            let (grant, granted) = oneshot::channel();
            let waiter = Waiter { bytes, what, grant };
            state.waiting.insert((priority, number), waiter);
            let place = Place {
                budget: self.clone(),
                number,
                bytes,
                taken: false,
            };
            (granted, place)
        };
        // The sender is dropped only after it was used.
        let _ = granted.await;
        place.taken = true;
        Permit {
            budget: self.clone(),
            bytes,
        }
    }

    fn fits(&self, state: &State, bytes: u64, priority: Priority) -> bool {
        let limit = match priority {
            Priority::Demand => self.total,
            _ => self.total - self.total / 4,
        };
        state.used == 0 || state.used.saturating_add(bytes) <= limit
    }

    fn release(&self, bytes: u64) {
        let mut state = self.state.lock();
        state.used = state.used.saturating_sub(bytes);
        // In order: a large one must not wait for ever behind small ones.
        while let Some((key, waiter)) = state.waiting.first_key_value() {
            let (key, bytes) = (*key, waiter.bytes);
            if !self.fits(&state, bytes, key.0) {
                break;
            }
            state.take(bytes);
            if let Some(waiter) = state.waiting.remove(&key) {
                // If nobody listens any more, its place gives the bytes back.
                let _ = waiter.grant.send(());
            }
        }
    }
}

impl State {
    /// Leaves the queue; `false`: it was not there any more.
    fn leave(&mut self, number: u64) -> bool {
        let key = self.waiting.keys().find(|key| key.1 == number).copied();
        key.and_then(|key| self.waiting.remove(&key)).is_some()
    }

    fn hasten(&mut self, what: What, priority: Priority) -> bool {
        let slower =
            |(key, waiter): &(&(Priority, u64), &Waiter)| waiter.what == what && key.0 > priority;
        let found = self.waiting.iter().find(slower).map(|(key, _)| *key);
        let Some((key, waiter)) = found.and_then(|key| Some((key, self.waiting.remove(&key)?)))
        else {
            return false;
        };
        self.waiting.insert((priority, key.1), waiter);
        true
    }

    fn take(&mut self, bytes: u64) {
        self.used = self.used.saturating_add(bytes);
        self.peak = self.peak.max(self.used);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    const FIRST: What = (0, 0);

    #[tokio::test]
    async fn demand_comes_first_and_has_a_reserve() {
        let budget = Budget::new(100);
        let first = budget.acquire(75, Priority::Background, FIRST).await;
        let mut background = Box::pin(budget.acquire(10, Priority::Background, FIRST));
        assert!((&mut background).now_or_never().is_none());
        let reserve = budget.acquire(25, Priority::Demand, FIRST).await;
        let mut demand = Box::pin(budget.acquire(60, Priority::Demand, FIRST));
        assert!((&mut demand).now_or_never().is_none());
        drop(first);
        let demand = demand.now_or_never().unwrap();
        assert!((&mut background).now_or_never().is_none());
        drop((reserve, demand));
        drop(background.now_or_never().unwrap());
        assert_eq!(budget.usage(), (0, 100));
    }

    #[tokio::test]
    async fn what_is_larger_than_the_budget_is_served_alone() {
        let budget = Budget::new(100);
        let small = budget.acquire(1, Priority::Demand, FIRST).await;
        let mut large = Box::pin(budget.acquire(1000, Priority::Demand, FIRST));
        assert!((&mut large).now_or_never().is_none());
        // Smaller ones do not overtake it for ever.
        let mut other = Box::pin(budget.acquire(1, Priority::Demand, FIRST));
        assert!((&mut other).now_or_never().is_none());
        drop(small);
        let large = large.now_or_never().unwrap();
        assert!((&mut other).now_or_never().is_none());
        drop(large);
        other.now_or_never().unwrap();
    }

    #[tokio::test]
    async fn what_a_reader_begins_to_wait_for_overtakes() {
        let budget = Budget::new(100);
        let first = budget.acquire(75, Priority::Demand, FIRST).await;
        let mut ahead = Box::pin(budget.acquire(20, Priority::Readahead, (1, 7)));
        let mut demand = Box::pin(budget.acquire(50, Priority::Demand, (1, 8)));
        assert!((&mut ahead).now_or_never().is_none());
        assert!((&mut demand).now_or_never().is_none());
        budget.hasten((1, 7), Priority::Demand);
        // Its place in the queue is that of its number: it came first.
        let ahead = ahead.now_or_never().unwrap();
        assert!((&mut demand).now_or_never().is_none());
        drop((first, ahead));
        drop(demand.now_or_never().unwrap());
        assert_eq!(budget.usage().0, 0);
    }

    #[tokio::test]
    async fn who_stands_behind_a_waiter_that_goes_away_moves_up() {
        let budget = Budget::new(100);
        let first = budget.acquire(50, Priority::Demand, FIRST).await;
        let mut gone = Box::pin(budget.acquire(100, Priority::Demand, (1, 1)));
        let mut behind = Box::pin(budget.acquire(10, Priority::Demand, (1, 2)));
        assert!((&mut gone).now_or_never().is_none());
        assert!((&mut behind).now_or_never().is_none());
        drop(gone);
        drop(behind.now_or_never().unwrap());
        drop(first);
        assert_eq!(budget.usage().0, 0);
    }

    #[tokio::test]
    async fn a_waiter_that_goes_away_takes_nothing_with_it() {
        let budget = Budget::new(100);
        let first = budget.acquire(100, Priority::Demand, FIRST).await;
        let mut gone = Box::pin(budget.acquire(100, Priority::Demand, FIRST));
        assert!((&mut gone).now_or_never().is_none());
        drop(gone);
        let mut granted_and_gone = Box::pin(budget.acquire(100, Priority::Demand, FIRST));
        assert!((&mut granted_and_gone).now_or_never().is_none());
        drop(first);
        drop(granted_and_gone);
        assert_eq!(budget.usage().0, 0);
    }
}
