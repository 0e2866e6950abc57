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
    waiting: BTreeMap<(Priority, u64), (u64, oneshot::Sender<()>)>,
}

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
    key: (Priority, u64),
    bytes: u64,
    taken: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.taken && self.budget.state.lock().waiting.remove(&self.key).is_none() {
            self.budget.release(self.bytes);
        }
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

    /// Bytes in use now and at most.
    pub(crate) fn usage(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.used, state.peak)
    }

    /// Waits for `bytes` bytes.
    pub(crate) async fn acquire(self: &Arc<Self>, bytes: u64, priority: Priority) -> Permit {
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
            let key = (priority, state.next);
            state.next += 1;
            let (grant, granted) = oneshot::channel();
            state.waiting.insert(key, (bytes, grant));
            let place = Place {
                budget: self.clone(),
                key,
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
        while let Some((key, (bytes, _))) = state.waiting.first_key_value() {
            let (key, bytes) = (*key, *bytes);
            if !self.fits(&state, bytes, key.0) {
                break;
            }
            state.take(bytes);
            if let Some((_, grant)) = state.waiting.remove(&key) {
                // If nobody listens any more, its place gives the bytes back.
                let _ = grant.send(());
            }
        }
    }
}

impl State {
    fn take(&mut self, bytes: u64) {
        self.used = self.used.saturating_add(bytes);
        self.peak = self.peak.max(self.used);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn demand_comes_first_and_has_a_reserve() {
        let budget = Budget::new(100);
        let first = budget.acquire(75, Priority::Background).await;
        let mut background = Box::pin(budget.acquire(10, Priority::Background));
        assert!((&mut background).now_or_never().is_none());
        let reserve = budget.acquire(25, Priority::Demand).await;
        let mut demand = Box::pin(budget.acquire(60, Priority::Demand));
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
        let small = budget.acquire(1, Priority::Demand).await;
        let mut large = Box::pin(budget.acquire(1000, Priority::Demand));
        assert!((&mut large).now_or_never().is_none());
        // Smaller ones do not overtake it for ever.
        let mut other = Box::pin(budget.acquire(1, Priority::Demand));
        assert!((&mut other).now_or_never().is_none());
        drop(small);
        let large = large.now_or_never().unwrap();
        assert!((&mut other).now_or_never().is_none());
        drop(large);
        other.now_or_never().unwrap();
    }

    #[tokio::test]
    async fn a_waiter_that_goes_away_takes_nothing_with_it() {
        let budget = Budget::new(100);
        let first = budget.acquire(100, Priority::Demand).await;
        let mut gone = Box::pin(budget.acquire(100, Priority::Demand));
        assert!((&mut gone).now_or_never().is_none());
        drop(gone);
        let mut granted_and_gone = Box::pin(budget.acquire(100, Priority::Demand));
        assert!((&mut granted_and_gone).now_or_never().is_none());
        drop(first);
        drop(granted_and_gone);
        assert_eq!(budget.usage().0, 0);
    }
}
