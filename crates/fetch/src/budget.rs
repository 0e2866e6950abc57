//! The memory budget: a semaphore over bytes that grants the most urgent request first.
//!
//! A quarter is reserved for demand. A request larger than the whole budget is granted when nothing
//! else is in use, so that a span of any size can be handled, alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::priority::Priority;
use crate::span_key::{LayerId, SpanKey};
use crate::sync::Mutex;

/// The memory budget.
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
    key: SpanKey,
    grant: oneshot::Sender<()>,
}

/// Bytes of the budget. Dropping it returns them.
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

/// A position in the queue. Dropping it leaves the queue, or returns the bytes that were granted.
struct QueueTicket {
    budget: Arc<Budget>,
    number: u64,
    bytes: u64,
    taken: bool,
}

impl Drop for QueueTicket {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        let left = self.budget.state.lock().leave(self.number);
        // The waiters behind it may fit now.
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

    /// Whether a request waits.
    pub(crate) fn has_waiters(&self) -> bool {
        !self.state.lock().waiting.is_empty()
    }

    /// Spans of a layer for which memory is waited for.
    pub(crate) fn waiting_spans(&self, layer: LayerId) -> Vec<SpanKey> {
        let state = self.state.lock();
        let keys = state.waiting.values().map(|waiter| waiter.key);
        keys.filter(|key| key.layer == layer).collect()
    }

    /// Bytes in use: now, and at most so far.
    pub(crate) fn usage(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.used, state.peak)
    }

    /// Raises the priority of the request that waits for a span, unless it is as urgent already.
    pub(crate) fn raise_priority(&self, key: SpanKey, priority: Priority) {
        let raised = self.state.lock().raise_priority(key, priority);
        if raised {
            self.release(0);
        }
    }

    /// Waits until `bytes` bytes are granted for a span.
    pub(crate) async fn acquire(
        self: &Arc<Self>,
        bytes: u64,
        priority: Priority,
        key: SpanKey,
    ) -> Permit {
        let (granted, mut ticket) = {
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
            let waiter = Waiter { bytes, key, grant };
            state.waiting.insert((priority, number), waiter);
            let ticket = QueueTicket {
                budget: self.clone(),
                number,
                bytes,
                taken: false,
            };
            (granted, ticket)
        };
        // The sender is dropped only after it was used.
        let _ = granted.await;
        ticket.taken = true;
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
        // In order: a large request must not starve behind small ones.
        while let Some((key, waiter)) = state.waiting.first_key_value() {
            let (key, bytes) = (*key, waiter.bytes);
            if !self.fits(&state, bytes, key.0) {
                break;
            }
            state.take(bytes);
            if let Some(waiter) = state.waiting.remove(&key) {
                // If the receiver is gone, its ticket returns the bytes.
                let _ = waiter.grant.send(());
            }
        }
    }
}

impl State {
    /// Removes a waiter; `false` if it had been granted its bytes.
    fn leave(&mut self, number: u64) -> bool {
        let key = self.waiting.keys().find(|key| key.1 == number).copied();
        key.and_then(|key| self.waiting.remove(&key)).is_some()
    }

    fn raise_priority(&mut self, span: SpanKey, priority: Priority) -> bool {
        let slower =
            |(key, waiter): &(&(Priority, u64), &Waiter)| waiter.key == span && key.0 > priority;
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

    const FIRST: SpanKey = key(0, 0);

    const fn key(layer: u64, span: u32) -> SpanKey {
        let layer = LayerId(layer);
        SpanKey { layer, span }
    }

    /// The lock is shuttle's: see [`crate::sync`].
    fn check<F: Future<Output = ()> + 'static>(test: fn() -> F) {
        shuttle::check_random(move || shuttle::future::block_on(test()), 1);
    }

    #[test]
    fn demand_comes_first_and_has_a_reserve() {
        check(|| async {
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
        });
    }

    #[test]
    fn what_is_larger_than_the_budget_is_served_alone() {
        check(|| async {
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
        });
    }

    #[test]
    fn what_a_reader_begins_to_wait_for_overtakes() {
        check(|| async {
            let budget = Budget::new(100);
            let first = budget.acquire(75, Priority::Demand, FIRST).await;
            let mut ahead = Box::pin(budget.acquire(20, Priority::Readahead, key(1, 7)));
            let mut demand = Box::pin(budget.acquire(50, Priority::Demand, key(1, 8)));
            assert!((&mut ahead).now_or_never().is_none());
            assert!((&mut demand).now_or_never().is_none());
            budget.raise_priority(key(1, 7), Priority::Demand);
            // Its place in the queue is that of its number: it came first.
            let ahead = ahead.now_or_never().unwrap();
            assert!((&mut demand).now_or_never().is_none());
            drop((first, ahead));
            drop(demand.now_or_never().unwrap());
            assert_eq!(budget.usage().0, 0);
        });
    }

    #[test]
    fn waiters_behind_one_that_goes_away_move_up() {
        check(|| async {
            let budget = Budget::new(100);
            let first = budget.acquire(50, Priority::Demand, FIRST).await;
            let mut gone = Box::pin(budget.acquire(100, Priority::Demand, key(1, 1)));
            let mut behind = Box::pin(budget.acquire(10, Priority::Demand, key(1, 2)));
            assert!((&mut gone).now_or_never().is_none());
            assert!((&mut behind).now_or_never().is_none());
            drop(gone);
            drop(behind.now_or_never().unwrap());
            drop(first);
            assert_eq!(budget.usage().0, 0);
        });
    }

    #[test]
    fn a_waiter_that_goes_away_takes_nothing_with_it() {
        check(|| async {
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
        });
    }
}
