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

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde calls it with a reference"
)]
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
    /// The spans.
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

/// The version that is read and written.
const VERSION: &str = "1.0";

impl Prefetch {
    /// A prefetch artifact of these spans, merged and sorted.
    #[must_use]
    pub fn new(spans: impl IntoIterator<Item = PrefetchSpan>) -> Self {
        Self {
            version: VERSION.to_owned(),
            prefetch_spans: merge(spans.into_iter().collect()),
        }
    }

    /// A prefetch artifact of single spans, each with a priority of its own. Neighbours of one
    /// priority are merged; of a span that is repeated the most urgent priority counts.
    #[must_use]
    pub fn of_spans(spans: impl IntoIterator<Item = (u32, i64)>) -> Self {
        let mut priorities = std::collections::BTreeMap::new();
        for (span, priority) in spans {
            let known = priorities.entry(span).or_insert(priority);
            *known = priority.min(*known);
        }
        let mut runs: Vec<PrefetchSpan> = Vec::new();
        for (span, priority) in priorities {
            match runs.last_mut() {
                Some(last)
                    if last.priority == priority && last.end_span.checked_add(1) == Some(span) =>
                {
                    last.end_span = span;
                }
                _ => runs.push(PrefetchSpan {
                    start_span: span,
                    end_span: span,
                    priority,
                }),
            }
        }
        Self {
            version: VERSION.to_owned(),
            prefetch_spans: runs,
        }
    }

    /// The runs in the order in which they are fetched.
    #[must_use]
    pub fn by_priority(&self) -> Vec<PrefetchSpan> {
        let mut runs = self.prefetch_spans.clone();
        runs.sort_by_key(|run| (run.priority, run.start_span));
        runs
    }

    /// Reads a prefetch artifact; its runs stay as they are listed.
    ///
    /// # Errors
    /// [`PrefetchError`] when it is none.
    pub fn parse(bytes: &[u8]) -> Result<Self, PrefetchError> {
        let read: Self = serde_json::from_slice(bytes)?;
        if read.version != VERSION {
            return Err(PrefetchError::Invalid(format!(
                "it has version {:?}; only {VERSION:?} is supported",
                read.version
            )));
        }
        if let Some(span) = read
            .prefetch_spans
            .iter()
            .find(|span| span.start_span > span.end_span)
        {
            return Err(PrefetchError::Invalid(format!(
                "its spans {} to {} are in the wrong order",
                span.start_span, span.end_span
            )));
        }
        if read.prefetch_spans.is_empty() {
            return Err(PrefetchError::Invalid("it lists no spans".to_owned()));
        }
        Ok(read)
    }

    /// Writes the artifact as Go's encoder would.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        // Writing a structure of strings and numbers to memory cannot fail.
        soci_oci::json::to_vec(self).unwrap_or_default()
    }
}

/// Sorts spans by where they start, and makes one of those that overlap or touch; that one has the
/// most urgent, the smallest, of their priorities.
fn merge(mut spans: Vec<PrefetchSpan>) -> Vec<PrefetchSpan> {
    spans.sort_unstable();
    let mut merged: Vec<PrefetchSpan> = Vec::with_capacity(spans.len());
    for span in spans {
        match merged.last_mut() {
            Some(last) if span.start_span <= last.end_span.saturating_add(1) => {
                last.end_span = last.end_span.max(span.end_span);
                last.priority = last.priority.min(span.priority);
            }
            _ => merged.push(span),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start_span: u32, end_span: u32, priority: i64) -> PrefetchSpan {
        PrefetchSpan {
            start_span,
            end_span,
            priority,
        }
    }

    #[test]
    fn spans_are_merged_and_sorted_and_written_as_go_does() {
        let prefetch = Prefetch::new([
            span(9, 9, 3),
            span(0, 2, 0),
            span(7, 8, 2),
            span(1, 4, 0),
            span(6, 6, 5),
        ]);
        assert_eq!(prefetch.prefetch_spans, [span(0, 4, 0), span(6, 9, 2)]);
        let json = br#"{"version":"1.0","prefetch_spans":[{"start_span":0,"end_span":4},{"start_span":6,"end_span":9,"priority":2}]}"#;
        assert_eq!(prefetch.encode(), json);
        assert_eq!(Prefetch::parse(json).unwrap(), prefetch);
    }

    #[test]
    fn spans_of_a_profile_keep_their_order() {
        let order = [(7, 0), (8, 1), (2, 2), (3, 2), (8, 9), (u32::MAX, 3)];
        let prefetch = Prefetch::of_spans(order);
        let runs = [
            span(2, 3, 2),
            span(7, 7, 0),
            span(8, 8, 1),
            span(u32::MAX, u32::MAX, 3),
        ];
        assert_eq!(prefetch.prefetch_spans, runs);
        let read = Prefetch::parse(&prefetch.encode()).unwrap();
        assert_eq!(read, prefetch);
        let first: Vec<_> = read
            .by_priority()
            .iter()
            .map(|run| run.start_span)
            .collect();
        assert_eq!(first, [7, 8, 2, u32::MAX]);
    }

    #[test]
    fn invalid_artifacts_are_refused() {
        for bad in [
            "",
            "{}",
            r#"{"version":"2.0","prefetch_spans":[{"start_span":0,"end_span":0}]}"#,
            r#"{"version":"1.0","prefetch_spans":[]}"#,
            r#"{"version":"1.0","prefetch_spans":[{"start_span":2,"end_span":1}]}"#,
            r#"{"version":"1.0","prefetch_spans":[{"start_span":-1,"end_span":1}]}"#,
        ] {
            assert!(Prefetch::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_last_possible_span_does_not_overflow() {
        let prefetch = Prefetch::new([span(0, u32::MAX, 0), span(u32::MAX, u32::MAX, 0)]);
        assert_eq!(prefetch.prefetch_spans, [span(0, u32::MAX, 0)]);
    }
}
