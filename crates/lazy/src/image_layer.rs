//! One layer of one image, as the labels of a Prepare identify it.

use std::collections::BTreeMap;

use soci_containerd::labels::{LayerAbove, LayerLabels};
use soci_layer::LayerRefusal;
use soci_oci::{Digest, Reference};

/// One layer of one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageLayer {
    pub(crate) image: ImageKey,
    pub(crate) layer: Digest,
    /// Compressed size in bytes, if the client sends it.
    pub(crate) size: Option<u64>,
    /// The layers above this one, which are prepared next.
    pub(crate) above: Vec<LayerAbove>,
}

/// What decides which SOCI index belongs to an image.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ImageKey {
    pub(crate) reference: Reference,
    pub(crate) manifest: Digest,
    /// The index that the client names itself.
    pub(crate) explicit_index: Option<Digest>,
    /// The client's namespace if each has a content store of its own, or empty.
    pub(crate) namespace: String,
}

impl ImageLayer {
    /// Parses the labels of a Prepare.
    ///
    /// # Errors
    /// A required label is missing or malformed.
    pub(crate) fn from_labels(labels: &BTreeMap<String, String>) -> Result<Self, LayerRefusal> {
        let read = LayerLabels::parse(labels)?;
        Ok(Self {
            image: ImageKey {
                reference: read.reference,
                manifest: read.manifest,
                explicit_index: read.explicit_index,
                namespace: String::new(),
            },
            layer: read.layer,
            size: read.size,
            above: read.above,
        })
    }
}

#[cfg(test)]
mod tests {
    use soci_containerd::labels::{IMAGE_REF, LAYER_DIGEST, MANIFEST_DIGEST};

    use super::*;

    #[test]
    fn a_missing_or_malformed_label_is_a_named_reason() {
        let labels: BTreeMap<_, _> = [
            (IMAGE_REF, "localhost:5000/app:1".to_owned()),
            (MANIFEST_DIGEST, Digest::of(b"m").to_string()),
            (LAYER_DIGEST, Digest::of(b"1").to_string()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        ImageLayer::from_labels(&labels).unwrap();
        for key in labels.keys() {
            let mut without = labels.clone();
            without.remove(key);
            let refusal = ImageLayer::from_labels(&without).unwrap_err();
            assert_eq!(refusal.code(), "missing-label");
            assert!(refusal.to_string().contains(key), "{refusal}");
            let mut malformed = labels.clone();
            malformed.insert(key.clone(), "sha256:no!".to_owned());
            let refusal = ImageLayer::from_labels(&malformed).unwrap_err();
            assert_eq!(refusal.code(), "invalid-label");
            assert!(refusal.to_string().contains(key), "{refusal}");
        }
    }
}
