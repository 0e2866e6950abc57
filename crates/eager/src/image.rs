//! An image that a client pulls, and its layers as manifest and configuration describe them.

use soci_layer::LayerRefusal;
use soci_oci::{Descriptor, Digest, Reference};

use crate::error::EagerError;

/// An image that a client pulls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageToPull {
    /// containerd's namespace of the client.
    pub(crate) namespace: String,
    /// The image, as the client named it.
    pub(crate) reference: Reference,
    /// The image's manifest.
    pub(crate) manifest: Digest,
}

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PlannedLayer {
    /// Its position, 0 for the lowest.
    pub(crate) order: usize,
    /// The compressed layer.
    pub(crate) descriptor: Descriptor,
    /// The digest of the uncompressed layer.
    pub(crate) diff_id: Digest,
    /// Its chain ID, under which clients keep the snapshot.
    pub(crate) chain_id: Digest,
}

/// The layer of a Prepare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WantedLayer {
    /// The compressed layer.
    pub(crate) layer: Digest,
    /// The chain ID that the snapshot will have; `None` if the client uses other names.
    pub(crate) chain_id: Option<Digest>,
    /// Number of layers from this one upwards, as far as the client says it.
    pub(crate) upwards: usize,
}

/// Returns the position of a layer. Layer and chain ID must both fit: the target of the Prepare is
/// the client's, while the other labels may come from the annotations of a layer, that is, from an
/// image.
pub(crate) fn position(
    manifest: Digest,
    layers: &[PlannedLayer],
    wanted: &WantedLayer,
) -> Result<usize, EagerError> {
    let fits = |layer: &&PlannedLayer| {
        layer.descriptor.digest == wanted.layer
            && wanted.chain_id.is_none_or(|chain| chain == layer.chain_id)
    };
    let found: Vec<usize> = layers
        .iter()
        .filter(fits)
        .map(|layer| layer.order)
        .collect();
    // An image may have a layer twice.
    let counted = layers.len().checked_sub(wanted.upwards);
    let at = found
        .iter()
        .find(|at| Some(**at) == counted)
        .or(found.first());
    at.copied().ok_or_else(|| EagerError::Labels {
        manifest,
        reason: match wanted.chain_id {
            Some(chain) => format!("it has no layer {} with chain ID {chain}", wanted.layer),
            None => format!("it has no layer {}", wanted.layer),
        },
    })
}

/// Refuses a layer that has layers below it and whose snapshot has no parent: committed like that it
/// would hide them.
pub(crate) fn check_parent(at: usize, parent: Option<&str>) -> Result<(), LayerRefusal> {
    match parent {
        Some("") if at > 0 => Err(LayerRefusal::WithoutParent),
        _ => Ok(()),
    }
}

/// Adds positions and chain IDs to the layers of an image, lowest first.
pub(crate) fn plan(layers: impl IntoIterator<Item = (Descriptor, Digest)>) -> Vec<PlannedLayer> {
    let mut planned: Vec<PlannedLayer> = Vec::new();
    for (descriptor, diff_id) in layers {
        let chain_id = match planned.last() {
            None => diff_id,
            Some(below) => Digest::of(format!("{} {diff_id}", below.chain_id).as_bytes()),
        };
        planned.push(PlannedLayer {
            order: planned.len(),
            descriptor,
            diff_id,
            chain_id,
        });
    }
    planned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upper_layer_needs_its_parent() {
        check_parent(0, Some("")).unwrap();
        check_parent(1, Some("k8s.io/1/sha256:below")).unwrap();
        let refusal = check_parent(1, Some("")).unwrap_err();
        assert!(refusal.to_string().contains("\"rebase\""), "{refusal}");
    }

    #[test]
    fn a_layer_is_found_by_its_digest_and_its_chain_together() {
        let blob = |name: &str| Descriptor::of("x", name.as_bytes());
        let [one, two] = [Digest::of(b"1"), Digest::of(b"2")];
        // The second layer occurs twice.
        let layers = plan([(blob("a"), one), (blob("b"), two), (blob("b"), two)]);
        let manifest = Digest::of(b"m");
        let at = |layer: &str, chain_id| {
            let layer = Digest::of(layer.as_bytes());
            let (chain_id, upwards) = (Some(chain_id), 0);
            let wanted = WantedLayer {
                layer,
                chain_id,
                upwards,
            };
            position(manifest, &layers, &wanted)
        };
        let chains: Vec<Digest> = layers.iter().map(|layer| layer.chain_id).collect();
        assert_eq!(chains[0], one);
        assert_eq!(chains[1], Digest::of(format!("{one} {two}").as_bytes()));
        assert_eq!(at("a", chains[0]).unwrap(), 0);
        assert_eq!(at("b", chains[1]).unwrap(), 1);
        assert_eq!(at("b", chains[2]).unwrap(), 2);
        let error = at("a", chains[1]).unwrap_err();
        assert!(matches!(error, EagerError::Labels { .. }), "{error}");
        assert!(at("b", two).is_err());
        // A client with names of its own.
        for (upwards, at) in [(2, 1), (1, 2), (0, 1)] {
            let wanted = WantedLayer {
                layer: Digest::of(b"b"),
                chain_id: None,
                upwards,
            };
            assert_eq!(position(manifest, &layers, &wanted).unwrap(), at);
        }
    }
}
