//! How a [`LayerRefusal`] is recorded, logged, reported and counted.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use soci_layer::LayerRefusal;

/// The reason why a layer is not lazy: in the metadata, in logs and in `soci status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusalReason {
    /// The stable word of [`LayerRefusal::code`].
    pub code: String,
    /// The sentence of the refusal with its causes.
    pub text: String,
}

impl From<&LayerRefusal> for RefusalReason {
    fn from(refusal: &LayerRefusal) -> Self {
        Self {
            code: refusal.code().to_owned(),
            text: soci_errors::chain(refusal),
        }
    }
}

/// Refusals since the start, by [`LayerRefusal::code`].
#[derive(Debug, Default)]
pub(crate) struct RefusalCounts(Mutex<BTreeMap<&'static str, u64>>);

impl RefusalCounts {
    /// Counts one refusal.
    pub(crate) fn add(&self, refusal: &LayerRefusal) {
        *self.0.lock().entry(refusal.code()).or_default() += 1;
    }

    /// Returns the count of every code.
    pub(crate) fn get(&self) -> Vec<(&'static str, u64)> {
        let counts = self.0.lock();
        LayerRefusal::CODES
            .iter()
            .map(|code| (*code, counts.get(code).copied().unwrap_or_default()))
            .collect()
    }
}
