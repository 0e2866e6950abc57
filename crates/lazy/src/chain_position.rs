//! The place of a layer in an image: its chain ID and that of the layers below.

use soci_oci::Digest;

/// The chain ID under which a client keeps a layer, and that of the layer below.
///
/// containerd computes a chain ID from the diff IDs of an image's configuration, and shares a
/// snapshot between all images with its chain ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChainPosition {
    /// `None` for the lowest layer.
    below: Option<Digest>,
    id: Digest,
}

impl ChainPosition {
    /// Parses the names of a snapshot and of its parent, which is empty for the lowest layer.
    /// `None` if they are not chain IDs.
    pub(crate) fn of(name: &str, parent: &str) -> Option<Self> {
        Some(Self {
            below: match parent {
                "" => None,
                parent => Some(chain_id(parent)?),
            },
            id: chain_id(name)?,
        })
    }

    /// Whether a layer with this diff ID belongs here (OCI image specification, config.md).
    pub(crate) fn is_of(&self, diff_id: &Digest) -> bool {
        match self.below {
            None => *diff_id == self.id,
            Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()) == self.id,
        }
    }
}

/// Returns the chain ID in the name of a snapshot: containerd's names are `namespace/number/chain`,
/// those of layers that the snapshotter commits begin with the chain ID.
pub(crate) fn chain_id(name: &str) -> Option<Digest> {
    let last = name.rsplit('/').next()?;
    last.split('#').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_belongs_where_its_diff_id_makes_the_chain_id() {
        let [first, second] = [Digest::of(b"1"), Digest::of(b"2")];
        let top = Digest::of(format!("{first} {second}").as_bytes());
        let lowest = ChainPosition::of(&first.to_string(), "").unwrap();
        assert!(lowest.is_of(&first) && !lowest.is_of(&second));
        let parent = format!("k8s.io/12/{first}");
        let upper = ChainPosition::of(&format!("{top}#7"), &parent).unwrap();
        assert!(upper.is_of(&second) && !upper.is_of(&first));
        assert_eq!(ChainPosition::of("layer-1", ""), None);
        assert_eq!(ChainPosition::of(&parent, "layer-0"), None);
    }
}
