//! The recordings of an image.

use soci_oci::Digest;

use crate::format;
use crate::format::{MAX_SIZE, ProfileError};
use crate::merged::Merged;
use crate::recording::{Recording, tidy};

/// Number of recordings that are kept of an image.
pub(crate) const KEPT: usize = 4;

/// The last recordings of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// The manifest of the image.
    pub manifest: Digest,
    /// The name under which the image was started.
    pub image: String,
    /// The oldest first.
    pub(crate) recordings: Vec<Recording>,
}

impl Profile {
    /// A profile without recordings.
    #[must_use]
    pub fn new(manifest: Digest, image: impl Into<String>) -> Self {
        Self {
            manifest,
            image: image.into(),
            recordings: Vec::new(),
        }
    }

    /// Reads a profile. Repeated spans count once, and of too many the first are kept.
    ///
    /// # Errors
    /// It is malformed, too large or of another version.
    pub fn parse(bytes: &[u8]) -> Result<Self, ProfileError> {
        format::parse(bytes)
    }

    /// The profile as it is stored; never larger than [`MAX_SIZE`].
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut kept = self.clone();
        loop {
            let bytes = format::encode(&kept);
            if bytes.len() as u64 <= MAX_SIZE {
                return bytes;
            }
            // The oldest goes first; of the last one the blocks, which only save time.
            match kept.recordings.as_mut_slice() {
                [only] if !only.blocks.is_empty() => only.blocks.clear(),
                [] => return bytes,
                _ => drop(kept.recordings.remove(0)),
            }
        }
    }

    /// Adds a recording; the oldest are dropped.
    pub fn add(&mut self, mut recording: Recording) {
        recording.spans.sort_by_key(|span| span.millis);
        tidy(&mut recording);
        self.recordings.push(recording);
        let surplus = self.recordings.len().saturating_sub(KEPT);
        self.recordings.drain(..surplus);
    }

    /// Number of recordings.
    #[must_use]
    pub const fn recordings(&self) -> usize {
        self.recordings.len()
    }

    /// What at least half of the recordings have, in the order of its mean time.
    #[must_use]
    pub fn merged(&self) -> Merged {
        Merged::of(&self.recordings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::Blocks;
    use crate::recording::{MAX_SPANS, ProfiledLayer, RecordedSpan};

    fn layer(name: &str) -> ProfiledLayer {
        ProfiledLayer {
            layer: Digest::of(name.as_bytes()),
            ztoc: Digest::of(b"z"),
        }
    }

    fn recording(list: &[(&str, u32, u64)]) -> Recording {
        let span = |(name, span, millis): &(&str, u32, u64)| RecordedSpan {
            layer: layer(name),
            span: *span,
            millis: *millis,
            extent: span * 64..span * 64 + 65,
        };
        Recording {
            spans: list.iter().map(span).collect(),
            blocks: Vec::new(),
        }
    }

    fn order(profile: &Profile) -> Vec<(ProfiledLayer, u32)> {
        let merged = profile.merged();
        merged
            .spans()
            .iter()
            .map(|span| (span.layer, span.span))
            .collect()
    }

    fn profile() -> Profile {
        Profile::new(Digest::of(b"manifest"), "registry.example/app:1")
    }

    #[test]
    fn spans_of_at_least_half_of_the_starts_are_played_in_the_order_of_their_mean_time() {
        let mut profile = profile();
        assert!(order(&profile).is_empty());
        profile.add(recording(&[("a", 1, 0), ("b", 7, 30), ("a", 2, 10)]));
        let first = [(layer("a"), 1), (layer("a"), 2), (layer("b"), 7)];
        assert_eq!(order(&profile), first);
        profile.add(recording(&[("b", 7, 0), ("a", 1, 5), ("c", 3, 100)]));
        profile.add(recording(&[("b", 7, 0), ("a", 1, 100)]));
        // Two starts of three.
        assert_eq!(order(&profile), [(layer("b"), 7), (layer("a"), 1)]);
        for _ in 0..KEPT {
            profile.add(recording(&[("d", 9, 0)]));
        }
        assert_eq!(order(&profile), [(layer("d"), 9)]);
        assert_eq!(profile.recordings(), KEPT);
    }

    #[test]
    fn blocks_of_at_least_half_of_the_starts_are_kept() {
        let mut profile = profile();
        for run in [0..4, 2..6, 2..3] {
            let mut recording = recording(&[("a", 0, 0)]);
            recording.blocks = vec![
                (layer("a"), Blocks::new([run])),
                (layer("a"), Blocks::new(std::iter::once(90..91))),
                (layer("b"), Blocks::new(std::iter::once(90..91))),
            ];
            profile.add(recording);
        }
        let parsed = Profile::parse(&profile.encode()).unwrap();
        assert_eq!(parsed, profile);
        let merged = parsed.merged();
        assert_eq!(
            merged.blocks(&layer("a")).unwrap().runs(),
            vec![std::ops::Range { start: 2, end: 4 }]
        );
        assert_eq!(merged.blocks(&layer("b")), None, "no span of it was read");
    }

    #[test]
    fn what_is_stored_is_small_however_much_was_read() {
        let mut profile = profile();
        for _ in 0..KEPT {
            let mut recording = Recording::default();
            for number in 0..10_000 {
                let layer = layer(&(number % 300).to_string());
                recording.spans.push(RecordedSpan {
                    layer,
                    span: u32::MAX - number,
                    millis: u64::MAX - u64::from(number),
                    extent: 0..u32::MAX,
                });
                let blocks = (0..2000).map(|at| at * 1000..at * 1000 + 500);
                if number < 300 {
                    recording.blocks.push((layer, Blocks::new(blocks)));
                }
            }
            profile.add(recording);
        }
        assert_eq!(profile.merged().spans().len(), MAX_SPANS);
        let bytes = profile.encode();
        assert!(bytes.len() as u64 <= MAX_SIZE, "{}", bytes.len());
        let kept = Profile::parse(&bytes).unwrap();
        assert!(kept.recordings() > 0);
        assert_eq!(kept.merged().spans().len(), MAX_SPANS);
    }

    #[test]
    fn what_is_not_a_profile_of_this_version_is_refused_with_the_reason() {
        let mut profile = profile();
        profile.add(recording(&[("a", 1, 0)]));
        let text = String::from_utf8(profile.encode()).unwrap();
        for (from, to, reason) in [
            ("\"version\":2", "\"version\":3", "it has version 3"),
            ("\"version\":2", "\"version\":1", "record it again"),
            ("[0,1,0,64,65]", "[0,-1,0,64,65]", "invalid value"),
            (
                "[0,1,0,64,65]",
                "[5,1,0,64,65]",
                "does not list its layer 5",
            ),
            ("[0,1,0,64,65]", "[0,1]", "invalid length"),
            ("sha256:", "md5:", "md5:"),
            (
                "\"blocks\":[]",
                "\"blocks\":[[0,[4294967295,9]]]",
                "leave the range",
            ),
            (
                "\"blocks\":[]",
                "\"blocks\":[[9,[1,9]]]",
                "does not list its layer 9",
            ),
        ] {
            assert!(text.contains(from), "{text}");
            let error = Profile::parse(text.replace(from, to).as_bytes()).unwrap_err();
            assert!(error.to_string().contains(reason), "{error}");
        }
        let large = format!("{text}{}", " ".repeat(1 << 20));
        let error = Profile::parse(large.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("limit of 1048576"), "{error}");
        for none in ["", "{", "[]", "{}", "null"] {
            assert!(Profile::parse(none.as_bytes()).is_err(), "{none}");
        }
    }

    #[test]
    fn repeated_spans_and_many_recordings_count_once() {
        let mut profile = profile();
        profile.add(recording(&[("a", 1, 0)]));
        profile.add(recording(&[("b", 2, 0)]));
        profile.add(recording(&[("b", 2, 0)]));
        let text = String::from_utf8(profile.encode()).unwrap();
        let span = "[0,1,0,64,65]";
        let again = text.replace(span, &[span; 30_000].join(","));
        assert_eq!(Profile::parse(again.as_bytes()).unwrap(), profile);
        let many = text.replace(
            "\"recordings\":[",
            &format!("\"recordings\":[{}", "{\"spans\":[]},".repeat(9)),
        );
        let many = Profile::parse(many.as_bytes()).unwrap();
        assert_eq!(many.recordings(), KEPT);
        assert_eq!(order(&many), [(layer("b"), 2)]);
    }
}
