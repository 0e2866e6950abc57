//! Counts, by reason, how often a layer was not mounted lazily since the start.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::snapshotter::Snapshotter;
use soci_layer::LayerRefusal;

/// Numbers by [`LayerRefusal::code`].
#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<BTreeMap<&'static str, u64>>);

impl Refusals {
    pub(crate) fn note(&self, refusal: &LayerRefusal) {
        *self.0.lock().entry(refusal.code()).or_default() += 1;
    }
}

impl Snapshotter {
    /// How many Prepares of layers were not mounted lazily since the start, for every code.
    #[must_use]
    pub fn refusals(&self) -> Vec<(&'static str, u64)> {
        let counts = self.inner.refusals.0.lock();
        LayerRefusal::CODES
            .iter()
            .map(|code| (*code, counts.get(code).copied().unwrap_or_default()))
            .collect()
    }
}
