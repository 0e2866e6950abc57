//! A limit that many things share as long as they live.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Measure, OverLimit};

/// Memory that many things share, up to a limit. Clones are the same pool.
#[derive(Debug, Clone)]
pub struct MeterPool(Arc<State>);

#[derive(Debug)]
struct State {
    what: &'static str,
    key: Option<&'static str>,
    limit: u64,
    held: AtomicU64,
}

impl MeterPool {
    /// A pool of `limit` bytes for `what`, such as "the file trees of all layers"; `key` is the
    /// configuration key that sets the limit.
    #[must_use]
    pub fn new(what: &'static str, limit: u64, key: Option<&'static str>) -> Self {
        Self(Arc::new(State {
            what,
            key,
            limit,
            held: AtomicU64::new(0),
        }))
    }

    /// Takes bytes until the permit is dropped.
    ///
    /// # Errors
    /// There is not as much left. It does not wait: what holds the rest may live for ever.
    pub fn take(&self, bytes: u64) -> Result<Permit, OverLimit> {
        let add = |held: u64| held.checked_add(bytes).filter(|sum| *sum <= self.0.limit);
        let held = &self.0.held;
        held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add)
            .map_err(|_| OverLimit {
                what: self.0.what,
                measure: Measure::Bytes,
                limit: self.0.limit,
                key: self.0.key,
            })?;
        Ok(Permit {
            pool: self.clone(),
            bytes,
        })
    }

    /// Bytes that are taken now.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.0.held.load(Ordering::Relaxed)
    }
}

/// Bytes taken from a [`MeterPool`], which get them back when this is dropped.
#[derive(Debug)]
#[must_use]
pub struct Permit {
    pool: MeterPool,
    bytes: u64,
}

impl Permit {
    /// Bytes that the permit holds.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns what is more than `bytes` to the pool.
    pub fn shrink_to(&mut self, bytes: u64) {
        let more = self.bytes.saturating_sub(bytes);
        self.pool.0.held.fetch_sub(more, Ordering::Relaxed);
        self.bytes -= more;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permit_holds_its_bytes_as_long_as_it_lives() {
        let pool = MeterPool::new("the trees of all layers", 100, Some("limits.trees_bytes"));
        let mut first = pool.take(70).unwrap();
        let refused = pool.take(31).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the trees of all layers would take more than 100 bytes of memory; \
             limits.trees_bytes sets the limit"
        );
        first.shrink_to(69);
        let second = pool.take(31).unwrap();
        drop(first);
        assert_eq!((pool.held(), second.bytes()), (31, 31));
        drop(second);
        assert!(pool.take(u64::MAX).is_err());
        assert_eq!(pool.held(), 0);
    }
}
