//! Start-up profiles: what starts of an image have read, and what to fetch ahead of the next one.

use std::collections::HashMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use soci_oci::Digest;
use soci_store::LayerKey;

/// Version of the format.
const VERSION: u32 = 1;
/// Number of recordings that are kept of an image.
const KEPT: usize = 4;
/// Number of spans that are kept of a recording.
const MOST_SPANS: usize = 4096;

/// A span of a layer, and when a start first read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordedSpan {
    pub(crate) layer: LayerKey,
    pub(crate) span: u32,
    /// Time since the first read of the start.
    pub(crate) at: Duration,
}

/// The recordings of an image, as they are stored. Spans are numbers in the table of one zTOC, so
/// layers are named by both digests.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Profile {
    version: u32,
    layers: Vec<(Digest, Digest)>,
    recordings: Vec<Recording>,
}

/// One start: layer, span, milliseconds, in the order of the first reads.
#[derive(Debug, Serialize, Deserialize)]
struct Recording {
    spans: Vec<(usize, u32, u64)>,
}

impl Profile {
    pub(crate) const fn new() -> Self {
        Self {
            version: VERSION,
            layers: Vec::new(),
            recordings: Vec::new(),
        }
    }

    /// Parses a stored profile; `None` if it is malformed or of another version.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let profile: Self = serde_json::from_slice(bytes).ok()?;
        (profile.version == VERSION).then_some(profile)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        // Writing numbers and strings to memory cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Adds a recording. The oldest ones are dropped, and layers that none uses any more.
    pub(crate) fn add(&mut self, mut spans: Vec<RecordedSpan>) {
        spans.sort_by_key(|span| span.at);
        spans.truncate(MOST_SPANS);
        let spans = spans.into_iter().map(|span| {
            let millis = u64::try_from(span.at.as_millis()).unwrap_or(u64::MAX);
            (self.number(span.layer), span.span, millis)
        });
        let recording = Recording {
            spans: spans.collect(),
        };
        self.recordings.push(recording);
        let surplus = self.recordings.len().saturating_sub(KEPT);
        self.recordings.drain(..surplus);
        self.drop_unused_layers();
    }

    fn number(&mut self, layer: LayerKey) -> usize {
        let key = (layer.layer, layer.ztoc);
        let known = self.layers.iter().position(|known| *known == key);
        known.unwrap_or_else(|| {
            self.layers.push(key);
            self.layers.len() - 1
        })
    }

    fn drop_unused_layers(&mut self) {
        let mut kept = Vec::new();
        let mut numbers = HashMap::new();
        for recording in &mut self.recordings {
            recording.spans.retain_mut(|(layer, ..)| {
                let Some(key) = self.layers.get(*layer) else {
                    return false;
                };
                *layer = *numbers.entry(*layer).or_insert_with(|| {
                    kept.push(*key);
                    kept.len() - 1
                });
                true
            });
        }
        self.layers = kept;
    }

    /// The spans that at least half of the recordings have, in the order of their mean time.
    pub(crate) fn merged(&self) -> Vec<(LayerKey, u32)> {
        let mut times: HashMap<(usize, u32), (u64, u64)> = HashMap::new();
        for recording in &self.recordings {
            for (layer, span, at) in &recording.spans {
                let (count, sum) = times.entry((*layer, *span)).or_default();
                *count += 1;
                *sum = sum.saturating_add(*at);
            }
        }
        let all = self.recordings.len() as u64;
        let mut spans: Vec<_> = times
            .into_iter()
            .filter(|(_, (count, _))| count.saturating_mul(2) >= all)
            .map(|(key, (count, sum))| (sum / count.max(1), key))
            .collect();
        spans.sort_unstable();
        let spans = spans.into_iter();
        spans
            .filter_map(|(_, (layer, span))| {
                let (layer, ztoc) = *self.layers.get(layer)?;
                Some((LayerKey { layer, ztoc }, span))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> LayerKey {
        LayerKey {
            layer: Digest::of(name.as_bytes()),
            ztoc: Digest::of(b"z"),
        }
    }

    fn spans(list: &[(&str, u32, u64)]) -> Vec<RecordedSpan> {
        let span = |(layer, span, at): &(&str, u32, u64)| RecordedSpan {
            layer: key(layer),
            span: *span,
            at: Duration::from_millis(*at),
        };
        list.iter().map(span).collect()
    }

    #[test]
    fn spans_of_at_least_half_of_the_starts_are_played_in_the_order_of_their_mean_time() {
        let mut profile = Profile::new();
        assert!(profile.merged().is_empty());
        profile.add(spans(&[("a", 1, 0), ("b", 7, 30), ("a", 2, 10)]));
        let order = [(key("a"), 1), (key("a"), 2), (key("b"), 7)];
        assert_eq!(profile.merged(), order);
        profile.add(spans(&[("b", 7, 0), ("a", 1, 5), ("c", 3, 100)]));
        profile.add(spans(&[("b", 7, 0), ("a", 1, 100)]));
        // Two starts of three.
        assert_eq!(profile.merged(), [(key("b"), 7), (key("a"), 1)]);
        for _ in 0..KEPT {
            profile.add(spans(&[("d", 9, 0)]));
        }
        assert_eq!(profile.merged(), [(key("d"), 9)]);
        assert_eq!(profile.layers.len(), 1);
    }

    #[test]
    fn what_is_not_a_profile_of_this_version_is_ignored() {
        let mut profile = Profile::new();
        profile.add(spans(&[("a", 1, 0)]));
        let bytes = profile.encode();
        assert_eq!(Profile::parse(&bytes).unwrap().merged(), profile.merged());
        let text = String::from_utf8(bytes).unwrap();
        for (from, to) in [
            ("\"version\":1", "\"version\":2"),
            ("[0,1,0]", "[0,-1,0]"),
            ("sha256:", "md5:"),
        ] {
            assert!(text.contains(from), "{text}");
            assert!(Profile::parse(text.replace(from, to).as_bytes()).is_none());
        }
        // Of a layer that it does not list.
        let odd = Profile::parse(text.replace("[0,1,0]", "[5,1,0]").as_bytes()).unwrap();
        assert!(odd.merged().is_empty());
    }
}
