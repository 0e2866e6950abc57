//! The prefetch artifact: spans of a layer that are worth fetching first.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// A run of spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PrefetchSpan {
    /// The first span.
    pub start_span: u32,
    /// The last span, which belongs to the run.
    pub end_span: u32,
    /// Smaller is fetched first; absent means 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: i64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
const fn is_zero(priority: &i64) -> bool {
    *priority == 0
}

impl PrefetchSpan {
    /// The spans.
    #[must_use]
    pub const fn range(&self) -> RangeInclusive<u32> {
        self.start_span..=self.end_span
    }
}

/// A prefetch artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prefetch {
    /// The version of the format, `1.0`.
    pub version: String,
    /// The spans, sorted, without overlaps.
    pub prefetch_spans: Vec<PrefetchSpan>,
}

/// Why bytes are not a prefetch artifact.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrefetchError {
    /// No JSON of the right shape.
    #[error("the prefetch artifact cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    /// Something in it cannot be.
    #[error("the prefetch artifact is invalid: {0}")]
    Invalid(String),
}

impl Prefetch {
    /// A prefetch artifact of these spans, merged and sorted.
    #[must_use]
    pub fn new(_spans: impl IntoIterator<Item = PrefetchSpan>) -> Self {
        todo!()
    }

    /// Reads a prefetch artifact; its spans come out merged and sorted.
    ///
    /// # Errors
    /// [`PrefetchError`] when it is none.
    pub fn parse(_bytes: &[u8]) -> Result<Self, PrefetchError> {
        todo!()
    }

    /// Writes the artifact as Go's encoder would.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        todo!()
    }
}
