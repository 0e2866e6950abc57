//! The memory budget: a semaphore over bytes that grants the most urgent request first, and shares
//! between origins.
//!
//! A quarter is reserved for demand. An origin may use at most twice what then remains free, so
//! that some is left whatever one of them does. A request larger than the whole budget is granted
//! when nothing else is in use, so that a span of any size can be handled, alone; some smaller ones
//! may pass it while it waits.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::priority::Priority;
use crate::span_key::{LayerId, OriginId, SpanKey};
use crate::sync::Mutex;

/// Number of requests of the same priority that may pass one that does not fit.
const MOST_PASSES: u32 = 8;

/// The memory budget.
#[derive(Debug)]
pub(crate) struct Budget {
    total: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    used: u64,
    by_origin: BTreeMap<OriginId, u64>,
    peak: u64,
    next: u64,
    waiting: BTreeMap<(Priority, u64), Waiter>,
}

#[derive(Debug)]
struct Waiter {
    bytes: u64,
    origin: OriginId,
    key: SpanKey,
    /// Number of later requests that were granted before it, because they are smaller.
    passed: u32,
    grant: oneshot::Sender<()>,
}

/// Why a request has to wait.
#[derive(Debug, PartialEq, Eq)]
enum Obstacle {
    /// Too little is free.
    Room,
    /// Its origin has its share.
    Share,
}

/// Bytes of the budget. Dropping it returns them.
#[derive(Debug)]
pub(crate) struct Permit {
    budget: Arc<Budget>,
    origin: OriginId,
    bytes: u64,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.release(self.origin, self.bytes);
    }
}

/// A position in the queue. Dropping it leaves the queue, or returns the bytes that were granted.
struct QueueTicket {
    budget: Arc<Budget>,
    number: u64,
    origin: OriginId,
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
        let bytes = if left { 0 } else { self.bytes };
        self.budget.release(self.origin, bytes);
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
        let mut state = self.state.lock();
        if state.raise_priority(key, priority) {
            self.grant(&mut state);
        }
    }

    /// Waits until `bytes` bytes are granted for a span that comes from `origin`.
    pub(crate) async fn acquire(
        self: &Arc<Self>,
        bytes: u64,
        priority: Priority,
        key: SpanKey,
        origin: OriginId,
    ) -> Permit {
        let (granted, mut ticket) = {
            let mut state = self.state.lock();
            let number = state.next;
            state.next += 1;
            let (grant, granted) = oneshot::channel();
            let waiter = Waiter {
                bytes,
                origin,
                key,
                passed: 0,
                grant,
            };
            state.waiting.insert((priority, number), waiter);
            self.grant(&mut state);
            let ticket = QueueTicket {
                budget: self.clone(),
                number,
                origin,
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
            origin,
            bytes,
        }
    }

    fn obstacle(&self, state: &State, waiter: &Waiter, priority: Priority) -> Option<Obstacle> {
        let limit = match priority {
            Priority::Demand => self.total,
            _ => self.total - self.total / 4,
        };
        if state.used == 0 {
            return None;
        }
        let used = state.used.saturating_add(waiter.bytes);
        if used > limit {
            return Some(Obstacle::Room);
        }
        let by_origin = state.by_origin.get(&waiter.origin).copied().unwrap_or(0);
        let left = self.total.saturating_sub(used);
        let share = by_origin.saturating_add(waiter.bytes) <= left.saturating_mul(2);
        (by_origin > 0 && !share).then_some(Obstacle::Share)
    }

    fn release(&self, origin: OriginId, bytes: u64) {
        let mut state = self.state.lock();
        state.used = state.used.saturating_sub(bytes);
        if let Some(used) = state.by_origin.get_mut(&origin) {
            *used = used.saturating_sub(bytes);
            if *used == 0 {
                state.by_origin.remove(&origin);
            }
        }
        self.grant(&mut state);
    }

    /// Grants what fits, in order. A request that does not fit lets some smaller ones of its
    /// priority pass, but is not starved by them; one whose origin has its share holds up none.
    fn grant(&self, state: &mut State) {
        let mut held_up: Vec<(Priority, u64)> = Vec::new();
        let mut after = None;
        loop {
            let from = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
            let mut rest = state.waiting.range((from, std::ops::Bound::Unbounded));
            let Some((key, waiter)) = rest.next() else {
                return;
            };
            let key = *key;
            after = Some(key);
            if held_up.first().is_some_and(|first| first.0 < key.0) {
                return;
            }
            match self.obstacle(state, waiter, key.0) {
                None => {
                    if let Some(waiter) = state.waiting.remove(&key) {
                        state.take(waiter.origin, waiter.bytes);
                        // If the receiver is gone, its ticket returns the bytes.
                        let _ = waiter.grant.send(());
                    }
                    for passed in &held_up {
                        if let Some(waiter) = state.waiting.get_mut(passed) {
                            waiter.passed += 1;
                        }
                    }
                }
                Some(Obstacle::Share) => {}
                Some(Obstacle::Room) => held_up.push(key),
            }
            let starved = |key: &(Priority, u64)| {
                let waiter = state.waiting.get(key);
                waiter.is_some_and(|waiter| waiter.passed >= MOST_PASSES)
            };
            if held_up.iter().any(starved) {
                return;
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

    fn take(&mut self, origin: OriginId, bytes: u64) {
        self.used = self.used.saturating_add(bytes);
        let used = self.by_origin.entry(origin).or_default();
        *used = used.saturating_add(bytes);
        self.peak = self.peak.max(self.used);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    const FIRST: SpanKey = key(0, 0);
    const ORIGIN: OriginId = OriginId(0);
    const OTHER: OriginId = OriginId(1);
    const THIRD: OriginId = OriginId(2);

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
            let first = budget
                .acquire(75, Priority::Background, FIRST, ORIGIN)
                .await;
            let mut background = Box::pin(budget.acquire(10, Priority::Background, FIRST, ORIGIN));
            assert!((&mut background).now_or_never().is_none());
            let reserve = budget.acquire(25, Priority::Demand, FIRST, OTHER).await;
            let mut demand = Box::pin(budget.acquire(60, Priority::Demand, FIRST, THIRD));
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
            let mut small = budget.acquire(1, Priority::Demand, FIRST, ORIGIN).await;
            let mut large = Box::pin(budget.acquire(1000, Priority::Demand, FIRST, ORIGIN));
            assert!((&mut large).now_or_never().is_none());
            // Smaller ones pass it, but not for ever.
            for _ in 0..MOST_PASSES {
                let next = budget.acquire(1, Priority::Demand, FIRST, OTHER);
                small = next.now_or_never().unwrap();
            }
            let mut other = Box::pin(budget.acquire(1, Priority::Demand, FIRST, OTHER));
            assert!((&mut other).now_or_never().is_none());
            drop(small);
            let large = large.now_or_never().unwrap();
            assert!((&mut other).now_or_never().is_none());
            drop(large);
            other.now_or_never().unwrap();
        });
    }

    #[test]
    fn an_origin_that_holds_what_it_has_leaves_room_for_others() {
        check(|| async {
            let budget = Budget::new(100);
            let mut held = Vec::new();
            for origin in 0..3 {
                loop {
                    let next = budget.acquire(5, Priority::Demand, FIRST, OriginId(origin));
                    let Some(permit) = next.now_or_never() else {
                        break;
                    };
                    held.push(permit);
                }
            }
            // Each leaves at least half of what it has.
            let of = |origin| {
                let held = held
                    .iter()
                    .filter(|permit| permit.origin == OriginId(origin));
                held.count()
            };
            assert_eq!([of(0), of(1), of(2)], [13, 4, 2]);
            let mut waits = Box::pin(budget.acquire(5, Priority::Demand, FIRST, ORIGIN));
            assert!((&mut waits).now_or_never().is_none());
            // It waits for its own bytes, and holds up none of the others.
            let other = budget.acquire(1, Priority::Readahead, FIRST, OriginId(9));
            assert!(other.now_or_never().is_none(), "the reserve is for demand");
            let other = budget.acquire(1, Priority::Demand, FIRST, OriginId(9));
            other.now_or_never().unwrap();
            held.retain(|permit| permit.origin == OriginId(1));
            waits.now_or_never().unwrap();
        });
    }

    #[test]
    fn what_a_reader_begins_to_wait_for_overtakes() {
        check(|| async {
            let budget = Budget::new(100);
            let first = budget.acquire(75, Priority::Demand, FIRST, ORIGIN).await;
            let mut ahead = Box::pin(budget.acquire(20, Priority::Readahead, key(1, 7), OTHER));
            let mut demand = Box::pin(budget.acquire(50, Priority::Demand, key(1, 8), THIRD));
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
            let first = budget.acquire(50, Priority::Demand, FIRST, ORIGIN).await;
            let mut gone = Box::pin(budget.acquire(100, Priority::Demand, key(1, 1), ORIGIN));
            let mut behind = Box::pin(budget.acquire(10, Priority::Demand, key(1, 2), OTHER));
            assert!((&mut gone).now_or_never().is_none());
            for _ in 0..MOST_PASSES {
                let passing = budget.acquire(1, Priority::Demand, FIRST, THIRD);
                drop(passing.now_or_never().unwrap());
            }
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
            let first = budget.acquire(100, Priority::Demand, FIRST, ORIGIN).await;
            let mut gone = Box::pin(budget.acquire(100, Priority::Demand, FIRST, ORIGIN));
            assert!((&mut gone).now_or_never().is_none());
            drop(gone);
            let mut granted_and_gone =
                Box::pin(budget.acquire(100, Priority::Demand, FIRST, ORIGIN));
            assert!((&mut granted_and_gone).now_or_never().is_none());
            drop(first);
            drop(granted_and_gone);
            assert_eq!(budget.usage().0, 0);
        });
    }
}
