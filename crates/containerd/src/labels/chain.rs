//! The place of a layer in an image: its chain ID and that of the layers below.

use std::collections::BTreeMap;

use soci_oci::Digest;

use super::{DIFF_ID, PARENT_CHAIN_ID};

/// The chain ID under which a client keeps a layer, and that of the layer below.
///
/// containerd computes a chain ID from the diff IDs of an image's configuration, and shares a
/// snapshot between all images with its chain ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainPosition {
    /// Chain ID of the layer below; `None` for the lowest layer.
    pub below: Option<Digest>,
    /// Chain ID of the layer.
    pub id: Digest,
}

/// Why a layer does not belong where its Prepare puts it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PositionError {
    /// The layer has layers below it, and is prepared without them.
    #[error("the layer is prepared without the layers below it, {below}")]
    Detached {
        /// Chain ID of the layer below.
        below: Digest,
    },
    /// A label contradicts the names of the snapshots, which are the client's own.
    #[error("{label} = {value:?} does not fit snapshot {id} on {}", parent(.below.as_ref()))]
    Contradiction {
        /// Key of the label.
        label: &'static str,
        /// Its value, shortened.
        value: String,
        /// Chain ID of the layer.
        id: Digest,
        /// Chain ID of the layer below.
        below: Option<Digest>,
    },
}

fn parent(below: Option<&Digest>) -> String {
    below.map_or_else(|| "no parent".to_owned(), Digest::to_string)
}

impl ChainPosition {
    /// Parses the names of a snapshot and of its parent, which is empty for the lowest layer.
    /// `None` if they are not chain IDs.
    #[must_use]
    pub fn of(name: &str, parent: &str) -> Option<Self> {
        Some(Self {
            below: match parent {
                "" => None,
                parent => Some(chain_id(parent)?),
            },
            id: chain_id(name)?,
        })
    }

    /// Whether a layer with this diff ID belongs here (OCI image specification, config.md).
    #[must_use]
    pub fn is_of(&self, diff_id: &Digest) -> bool {
        match self.below {
            None => *diff_id == self.id,
            Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()) == self.id,
        }
    }

    /// Compares the names with the labels [`DIFF_ID`] and [`PARENT_CHAIN_ID`] of the Prepare, if it has
    /// them.
    ///
    /// # Errors
    /// A label contradicts the names, or shows that the layers below are missing.
    pub fn check(&self, labels: &BTreeMap<String, String>) -> Result<(), PositionError> {
        let label = |key: &'static str| labels.get(key).map(|value| (key, value));
        let contradiction = |(label, value): (&'static str, &String)| {
            Err(PositionError::Contradiction {
                label,
                value: value.chars().take(80).collect(),
                id: self.id,
                below: self.below,
            })
        };
        let digest = |text: Option<&String>| text.and_then(|text| text.parse::<Digest>().ok());
        let diff_id = digest(labels.get(DIFF_ID));
        if let Some(label) = label(PARENT_CHAIN_ID) {
            let below = digest(Some(label.1));
            let fits = |diff_id: &Digest| Self { below, id: self.id }.is_of(diff_id);
            match below {
                Some(below) if self.below.is_none() && diff_id.as_ref().is_some_and(fits) => {
                    return Err(PositionError::Detached { below });
                }
                Some(_) if below == self.below => {}
                _ => return contradiction(label),
            }
        }
        match label(DIFF_ID) {
            Some(label) if !diff_id.is_some_and(|diff_id| self.is_of(&diff_id)) => {
                contradiction(label)
            }
            _ => Ok(()),
        }
    }
}

/// Returns the chain ID in the name of a snapshot: containerd's names are `namespace/number/chain`,
/// those of layers that the snapshotter commits begin with the chain ID.
#[must_use]
pub fn chain_id(name: &str) -> Option<Digest> {
    let last = name.rsplit('/').next()?;
    last.split('#').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(below: Digest, diff_id: Digest) -> Digest {
        Digest::of(format!("{below} {diff_id}").as_bytes())
    }

    #[test]
    fn a_layer_belongs_where_its_diff_id_makes_the_chain_id() {
        let [first, second] = [Digest::of(b"1"), Digest::of(b"2")];
        let top = chain(first, second);
        let lowest = ChainPosition::of(&first.to_string(), "").unwrap();
        assert!(lowest.is_of(&first) && !lowest.is_of(&second));
        let parent = format!("k8s.io/12/{first}");
        let upper = ChainPosition::of(&format!("{top}#7"), &parent).unwrap();
        assert!(upper.is_of(&second) && !upper.is_of(&first));
        assert_eq!(ChainPosition::of("layer-1", ""), None);
        assert_eq!(ChainPosition::of(&parent, "layer-0"), None);
    }

    #[test]
    fn labels_agree_with_the_names_or_are_named() {
        let [first, second, other] = [b"1", b"2", b"3"].map(|text| Digest::of(text));
        let top = chain(first, second);
        let check = |below: Option<Digest>, id, diff: Option<Digest>, parent: Option<Digest>| {
            let labels = [(DIFF_ID, diff), (PARENT_CHAIN_ID, parent)];
            let labels = labels.into_iter().filter_map(|(key, value)| {
                let value = value?.to_string();
                Some((key.to_owned(), value))
            });
            ChainPosition { below, id }.check(&labels.collect())
        };
        let named = |result: Result<(), PositionError>| match result.unwrap_err() {
            PositionError::Contradiction { label, .. } => label,
            other => panic!("{other}"),
        };
        // As containerd 2.3 sends them, and as earlier ones do, which send none.
        check(None, first, Some(first), None).unwrap();
        check(Some(first), top, Some(second), Some(first)).unwrap();
        check(Some(first), top, None, None).unwrap();
        // As it sends them for a snapshotter that lists "rebase": without a parent.
        assert_eq!(
            check(None, top, Some(second), Some(first)).unwrap_err(),
            PositionError::Detached { below: first }
        );
        // As an annotation sets them under earlier ones.
        assert_eq!(named(check(None, first, Some(other), None)), DIFF_ID);
        assert_eq!(
            named(check(None, first, Some(first), Some(other))),
            PARENT_CHAIN_ID
        );
        assert_eq!(
            named(check(None, first, None, Some(other))),
            PARENT_CHAIN_ID
        );
        assert_eq!(
            named(check(Some(first), top, Some(other), Some(first))),
            DIFF_ID
        );
        assert_eq!(
            named(check(Some(first), top, Some(second), Some(other))),
            PARENT_CHAIN_ID
        );
        for key in [DIFF_ID, PARENT_CHAIN_ID] {
            let labels = [(key.to_owned(), "x".repeat(4000))].into();
            let error = ChainPosition::of(&first.to_string(), "").unwrap();
            let error = error.check(&labels).unwrap_err().to_string();
            assert!(error.contains(key) && error.len() < 300, "{error}");
        }
    }
}
