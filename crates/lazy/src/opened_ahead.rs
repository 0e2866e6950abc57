//! Layers that are opened ahead of their Prepare, until it has come.
//!
//! The Prepare of a layer may come and go while the layer is still being opened ahead: what was opened
//! for it is then of no use any more, and would keep a removed layer on the disk.

use std::collections::HashMap;

use parking_lot::Mutex;
use soci_store::LayerKey;

use crate::lease::Lease;

/// The layers that wait for their Prepare.
pub(crate) struct OpenedAhead<T: Send + Sync + 'static> {
    state: Mutex<State<T>>,
}

struct State<T: Send + Sync + 'static> {
    waiting: HashMap<LayerKey, Waiting<T>>,
    begun: u64,
}

struct Waiting<T: Send + Sync + 'static> {
    opening: Opening,
    /// `None` as long as it is being opened.
    lease: Option<Lease<T>>,
}

/// One opening of a layer ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Opening(u64);

impl<T: Send + Sync + 'static> Default for OpenedAhead<T> {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                waiting: HashMap::new(),
                begun: 0,
            }),
        }
    }
}

impl<T: Send + Sync + 'static> OpenedAhead<T> {
    /// Notes that a layer is being opened ahead; returns `None` if it is or was already.
    pub(crate) fn begin(&self, key: LayerKey) -> Option<Opening> {
        let mut state = self.state.lock();
        if state.waiting.contains_key(&key) {
            return None;
        }
        state.begun += 1;
        let opening = Opening(state.begun);
        let waiting = Waiting {
            opening,
            lease: None,
        };
        state.waiting.insert(key, waiting);
        Some(opening)
    }

    /// Keeps an open layer for its Prepare. Returns `false` and drops the lease if that has come already.
    pub(crate) fn keep(&self, opening: Opening, lease: Lease<T>) -> bool {
        let mut state = self.state.lock();
        match state.waiting.get_mut(&lease.key()) {
            Some(waiting) if waiting.opening == opening => {
                waiting.lease = Some(lease);
                true
            }
            _ => false,
        }
    }

    /// Notes that the Prepare of a layer has come, and has a lease of its own.
    pub(crate) fn claim(&self, key: &LayerKey) {
        let claimed = self.state.lock().waiting.remove(key);
        drop(claimed);
    }

    /// Ends an opening; returns whether its Prepare had not come.
    pub(crate) fn give_up(&self, key: &LayerKey, opening: Opening) -> bool {
        let mut state = self.state.lock();
        let is_it = |waiting: &Waiting<T>| waiting.opening == opening;
        let unclaimed = state.waiting.get(key).is_some_and(is_it);
        let given_up = unclaimed.then(|| state.waiting.remove(key));
        drop(state);
        drop(given_up);
        unclaimed
    }

    /// Drops all layers.
    pub(crate) fn clear(&self) {
        let all = std::mem::take(&mut self.state.lock().waiting);
        drop(all);
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;

    use soci_oci::Digest;

    use super::*;
    use crate::lease::LeaseMap;

    struct Layers {
        leases: Arc<LeaseMap<()>>,
        ahead: OpenedAhead<()>,
        key: LayerKey,
    }

    impl Layers {
        fn new() -> Self {
            Self {
                leases: Arc::default(),
                ahead: OpenedAhead::default(),
                key: LayerKey {
                    layer: Digest::of(b"l"),
                    ztoc: Digest::of(b"z"),
                },
            }
        }

        async fn lease(&self) -> Lease<()> {
            let opened = self.leases.acquire(self.key, async { Ok(()) });
            opened
                .await
                .unwrap_or_else(|never: Infallible| match never {})
        }
    }

    #[tokio::test]
    async fn a_layer_waits_for_its_prepare_and_is_opened_ahead_once() {
        let layers = Layers::new();
        let opening = layers.ahead.begin(layers.key).unwrap();
        assert_eq!(layers.ahead.begin(layers.key), None);
        assert!(layers.ahead.keep(opening, layers.lease().await));
        assert_eq!(layers.ahead.begin(layers.key), None);
        assert!(layers.leases.in_use(&layers.key));
        layers.ahead.claim(&layers.key);
        assert!(!layers.leases.in_use(&layers.key));
        assert!(!layers.ahead.give_up(&layers.key, opening));
    }

    #[tokio::test]
    async fn a_layer_whose_prepare_came_while_it_was_opened_is_not_kept() {
        let layers = Layers::new();
        let opening = layers.ahead.begin(layers.key).unwrap();
        let lease = layers.lease().await;
        layers.ahead.claim(&layers.key);
        assert!(!layers.ahead.keep(opening, lease));
        assert!(!layers.leases.in_use(&layers.key));
    }

    #[tokio::test]
    async fn an_opening_that_is_given_up_takes_no_later_one_with_it() {
        let layers = Layers::new();
        let first = layers.ahead.begin(layers.key).unwrap();
        layers.ahead.claim(&layers.key);
        let second = layers.ahead.begin(layers.key).unwrap();
        assert!(layers.ahead.keep(second, layers.lease().await));
        assert!(!layers.ahead.give_up(&layers.key, first));
        assert!(layers.leases.in_use(&layers.key));
        assert!(layers.ahead.give_up(&layers.key, second));
        assert!(!layers.leases.in_use(&layers.key));
        assert!(layers.ahead.begin(layers.key).is_some());
        layers.ahead.clear();
        assert!(layers.ahead.begin(layers.key).is_some());
    }
}
