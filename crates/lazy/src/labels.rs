//! The labels that a Prepare carries about an image layer (containerd's CRI annotations
//! and SOCI's own), read into one typed value.

use std::collections::BTreeMap;

use soci_layer::LayerRefusal;
use soci_oci::{Digest, Reference};

/// The image reference as the client gave it.
const IMAGE_REF: &str = "containerd.io/snapshot/cri.image-ref";
/// The digest of the image manifest.
const MANIFEST_DIGEST: &str = "containerd.io/snapshot/cri.manifest-digest";
/// The digest of the layer that is being prepared.
const LAYER_DIGEST: &str = "containerd.io/snapshot/cri.layer-digest";
/// Comma list: this layer's digest and those of the layers above it.
const IMAGE_LAYERS: &str = "containerd.io/snapshot/cri.image-layers";
/// Comma list: the compressed sizes of those layers in bytes.
const LAYER_SIZES: &str = "containerd.io/snapshot/remote/image.layers.size";
/// The compressed size of the layer in bytes.
const LAYER_SIZE: &str = "containerd.io/snapshot/remote/soci.size";
/// The digest of the SOCI index to use, whatever the image says.
const INDEX_DIGEST: &str = "containerd.io/snapshot/remote/soci.index.digest";

/// One layer of one image, as the labels describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageLayer {
    pub(crate) image: ImageKey,
    pub(crate) layer: Digest,
    /// Compressed size in bytes, when the client says it.
    pub(crate) size: Option<u64>,
    /// The layers above this one, which will be asked for next.
    pub(crate) above: Vec<Above>,
}

/// A layer above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Above {
    pub(crate) layer: Digest,
    /// Compressed size in bytes, when the client says it.
    pub(crate) size: Option<u64>,
}

/// What decides which SOCI index belongs to an image.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ImageKey {
    pub(crate) reference: Reference,
    pub(crate) manifest: Digest,
    /// An index that the client names itself.
    pub(crate) explicit_index: Option<Digest>,
    /// The client's namespace if each has a content store of its own, or empty.
    pub(crate) namespace: String,
}

impl ImageLayer {
    /// Reads the labels; what is missing or malformed is a reason not to be lazy.
    pub(crate) fn from_labels(labels: &BTreeMap<String, String>) -> Result<Self, LayerRefusal> {
        let reference = required(labels, IMAGE_REF)?;
        let layer = digest(labels, LAYER_DIGEST)?;
        let list = |key| labels.get(key).into_iter().flat_map(|list| list.split(','));
        let sizes = list(LAYER_SIZES).map(|text| text.trim().parse().ok());
        let above = list(IMAGE_LAYERS)
            .zip(sizes.chain(std::iter::repeat(None)))
            // A list cut short by containerd's label limit may end in half a digest.
            .filter_map(|(text, size)| {
                let layer = text.trim().parse().ok()?;
                Some(Above { layer, size })
            })
            .filter(|above| above.layer != layer)
            .collect();
        let explicit_index = match labels.get(INDEX_DIGEST).map(String::as_str) {
            None | Some("") => None,
            Some(_) => Some(digest(labels, INDEX_DIGEST)?),
        };
        Ok(Self {
            image: ImageKey {
                reference: reference
                    .parse()
                    .map_err(|e| LayerRefusal::invalid_label(IMAGE_REF, e))?,
                manifest: digest(labels, MANIFEST_DIGEST)?,
                explicit_index,
                namespace: String::new(),
            },
            layer,
            size: match labels.get(LAYER_SIZE).map(String::as_str) {
                None | Some("") => None,
                // A size that is not one is as good as none: it only serves a threshold.
                Some(text) => text.parse().ok(),
            },
            above,
        })
    }
}

fn required<'a>(
    labels: &'a BTreeMap<String, String>,
    key: &'static str,
) -> Result<&'a str, LayerRefusal> {
    match labels.get(key).map(String::as_str) {
        None | Some("") => Err(LayerRefusal::missing_label(key)),
        Some(value) => Ok(value),
    }
}

fn digest(labels: &BTreeMap<String, String>, key: &'static str) -> Result<Digest, LayerRefusal> {
    required(labels, key)?
        .parse()
        .map_err(|e| LayerRefusal::invalid_label(key, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels() -> BTreeMap<String, String> {
        let [layer, next] = [Digest::of(b"1"), Digest::of(b"2")];
        [
            (IMAGE_REF, "localhost:5000/app:1".to_owned()),
            (MANIFEST_DIGEST, Digest::of(b"m").to_string()),
            (LAYER_DIGEST, layer.to_string()),
            (IMAGE_LAYERS, format!("{layer},{next},sha256:cut")),
            (LAYER_SIZES, "42,43,44".to_owned()),
            (LAYER_SIZE, "42".to_owned()),
            (INDEX_DIGEST, String::new()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
    }

    #[test]
    fn a_full_set_of_labels_is_read() {
        let read = ImageLayer::from_labels(&labels()).unwrap();
        assert_eq!(read.layer, Digest::of(b"1"));
        let above = Above {
            layer: Digest::of(b"2"),
            size: Some(43),
        };
        assert_eq!(read.above, [above]);
        assert_eq!(read.size, Some(42));
        assert_eq!(read.image.explicit_index, None);
        assert_eq!(read.image.reference.repository(), "app");
    }

    #[test]
    fn a_missing_or_malformed_label_is_a_named_reason() {
        for key in [IMAGE_REF, MANIFEST_DIGEST, LAYER_DIGEST] {
            let mut without = labels();
            without.remove(key);
            let refusal = ImageLayer::from_labels(&without).unwrap_err();
            assert!(refusal.to_string().contains(key), "{refusal}");
            let mut broken = labels();
            broken.insert(key.to_owned(), "sha256:no!".to_owned());
            let refusal = ImageLayer::from_labels(&broken).unwrap_err();
            assert!(refusal.to_string().contains(key), "{refusal}");
        }
    }
}
