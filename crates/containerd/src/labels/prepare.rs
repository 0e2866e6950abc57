//! The labels of a Prepare that describe an image layer (containerd's CRI annotations and SOCI's
//! own): the client builds them, the snapshotter parses them.

use std::collections::{BTreeMap, HashMap};

use soci_oci::{Digest, Manifest, Reference};

use super::{
    EAGER, IMAGE_LAYER_SIZES, IMAGE_LAYERS, IMAGE_REF, INDEX_DIGEST, LAYER_DIGEST, LAYER_SIZE,
    MANIFEST_DIGEST, MAX_LENGTH, TARGET,
};

/// An image whose layers are prepared.
#[derive(Debug, Clone, Copy)]
pub struct ImageLabels<'a> {
    /// Reference of the image.
    pub reference: &'a Reference,
    /// Digest of its manifest.
    pub manifest_digest: Digest,
    /// Its manifest.
    pub manifest: &'a Manifest,
    /// SOCI index to use, whatever the image names.
    pub index_digest: Option<Digest>,
    /// Requests a parallel pull of all layers if no index is found.
    pub eager: bool,
}

impl ImageLabels<'_> {
    /// Builds the labels for the layer at position `at`, to be committed as `chain_id`.
    #[must_use]
    pub fn for_layer(&self, at: usize, chain_id: Digest) -> HashMap<String, String> {
        let layers = self.manifest.layers.get(at..).unwrap_or_default();
        let digests = layers.iter().map(|layer| layer.digest.to_string());
        let sizes = layers.iter().map(|layer| layer.size.to_string());
        let mut labels = vec![
            (TARGET, chain_id.to_string()),
            (IMAGE_REF, self.reference.to_string()),
            (MANIFEST_DIGEST, self.manifest_digest.to_string()),
            (IMAGE_LAYERS, list(IMAGE_LAYERS, digests)),
            (IMAGE_LAYER_SIZES, list(IMAGE_LAYER_SIZES, sizes)),
        ];
        if let Some(layer) = layers.first() {
            labels.push((LAYER_DIGEST, layer.digest.to_string()));
            labels.push((LAYER_SIZE, layer.size.to_string()));
        }
        if let Some(index) = self.index_digest {
            labels.push((INDEX_DIGEST, index.to_string()));
        }
        if self.eager {
            labels.push((EAGER, "true".to_owned()));
        }
        let labels = labels.into_iter();
        labels.map(|(key, value)| (key.to_owned(), value)).collect()
    }
}

/// Joins as many items with commas as fit into one label.
fn list(key: &str, items: impl Iterator<Item = String>) -> String {
    let mut out = String::new();
    for item in items {
        if key.len() + out.len() + 1 + item.len() > MAX_LENGTH {
            break;
        }
        if !out.is_empty() {
            out.push(',');
        }
        out.push_str(&item);
    }
    out
}

/// One layer of one image, as the labels of its Prepare describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerLabels {
    /// Reference of the image.
    pub reference: Reference,
    /// Digest of the image's manifest.
    pub manifest: Digest,
    /// SOCI index that the client names itself.
    pub explicit_index: Option<Digest>,
    /// Digest of the layer.
    pub layer: Digest,
    /// Compressed size in bytes, if the client sends it.
    pub size: Option<u64>,
    /// The layers above this one, which are prepared next.
    pub above: Vec<LayerAbove>,
}

/// A layer above the one that is prepared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerAbove {
    /// Digest of the layer.
    pub layer: Digest,
    /// Compressed size in bytes, if the client sends it.
    pub size: Option<u64>,
}

/// Why the labels of a Prepare do not describe an image layer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LabelError {
    /// A required label is absent or empty.
    #[error("label {0} is missing")]
    Missing(&'static str),
    /// A label does not hold a digest or reference.
    #[error("label {label} is invalid")]
    Invalid {
        /// Key of the label.
        label: &'static str,
        /// What is wrong with its value.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl LayerLabels {
    /// Parses the labels of a Prepare. Sizes that cannot be read count as absent.
    ///
    /// # Errors
    /// A required label is missing, or one that identifies image, layer or index is malformed.
    pub fn parse(labels: &BTreeMap<String, String>) -> Result<Self, LabelError> {
        let layer = digest(labels, LAYER_DIGEST)?;
        let list = |key| labels.get(key).into_iter().flat_map(|list| list.split(','));
        let sizes = list(IMAGE_LAYER_SIZES).map(|text| text.trim().parse().ok());
        let above = list(IMAGE_LAYERS)
            .zip(sizes.chain(std::iter::repeat(None)))
            // A list cut short by containerd's label limit may end in half a digest.
            .filter_map(|(text, size)| {
                let layer = text.trim().parse().ok()?;
                Some(LayerAbove { layer, size })
            })
            .filter(|above| above.layer != layer)
            .collect();
        Ok(Self {
            reference: parsed(IMAGE_REF, required(labels, IMAGE_REF)?)?,
            manifest: digest(labels, MANIFEST_DIGEST)?,
            explicit_index: match labels.get(INDEX_DIGEST).map(String::as_str) {
                None | Some("") => None,
                Some(text) => Some(parsed(INDEX_DIGEST, text)?),
            },
            layer,
            size: labels.get(LAYER_SIZE).and_then(|text| text.parse().ok()),
            above,
        })
    }
}

fn required<'a>(
    labels: &'a BTreeMap<String, String>,
    key: &'static str,
) -> Result<&'a str, LabelError> {
    match labels.get(key).map(String::as_str) {
        None | Some("") => Err(LabelError::Missing(key)),
        Some(value) => Ok(value),
    }
}

fn digest(labels: &BTreeMap<String, String>, key: &'static str) -> Result<Digest, LabelError> {
    parsed(key, required(labels, key)?)
}

fn parsed<T: std::str::FromStr>(label: &'static str, value: &str) -> Result<T, LabelError>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    value.parse().map_err(|error: T::Err| LabelError::Invalid {
        label,
        source: Box::new(error),
    })
}

#[cfg(test)]
mod tests {
    use soci_oci::Descriptor;

    use super::*;

    fn manifest(layers: usize) -> Manifest {
        let blob = |name: &str| Descriptor::of("x", name.as_bytes());
        Manifest {
            schema_version: 2,
            media_type: String::new(),
            artifact_type: None,
            config: blob("config"),
            layers: (0..layers).map(|n| blob(&format!("layer {n}"))).collect(),
            subject: None,
            annotations: BTreeMap::new(),
        }
    }

    fn labels() -> BTreeMap<String, String> {
        let [layer, next] = [Digest::of(b"1"), Digest::of(b"2")];
        [
            (IMAGE_REF, "localhost:5000/app:1".to_owned()),
            (MANIFEST_DIGEST, Digest::of(b"m").to_string()),
            (LAYER_DIGEST, layer.to_string()),
            (IMAGE_LAYERS, format!("{layer},{next},sha256:cut")),
            (IMAGE_LAYER_SIZES, "42,43,44".to_owned()),
            (LAYER_SIZE, "42".to_owned()),
            (INDEX_DIGEST, String::new()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
    }

    #[test]
    fn a_full_set_of_labels_is_read() {
        let read = LayerLabels::parse(&labels()).unwrap();
        assert_eq!(read.layer, Digest::of(b"1"));
        let above = LayerAbove {
            layer: Digest::of(b"2"),
            size: Some(43),
        };
        assert_eq!(read.above, [above]);
        assert_eq!(read.size, Some(42));
        assert_eq!(read.explicit_index, None);
        assert_eq!(read.reference.repository(), "app");
    }

    #[test]
    fn a_missing_or_malformed_label_is_a_named_reason() {
        for key in [IMAGE_REF, MANIFEST_DIGEST, LAYER_DIGEST] {
            let mut without = labels();
            without.remove(key);
            let error = LayerLabels::parse(&without).unwrap_err();
            assert!(error.to_string().contains(key), "{error}");
            let mut broken = labels();
            broken.insert(key.to_owned(), "sha256:no!".to_owned());
            let error = LayerLabels::parse(&broken).unwrap_err();
            assert!(error.to_string().contains(key), "{error}");
        }
    }

    #[test]
    fn labels_that_are_built_are_read_back() {
        let manifest = manifest(3);
        let reference = "localhost:5000/app:1".parse().unwrap();
        let image = ImageLabels {
            reference: &reference,
            manifest_digest: Digest::of(b"m"),
            manifest: &manifest,
            index_digest: Some(Digest::of(b"i")),
            eager: true,
        };
        let built = image.for_layer(1, Digest::of(b"c"));
        assert_eq!(built[EAGER], "true");
        assert_eq!(built[TARGET], Digest::of(b"c").to_string());
        let [_, second, third] = &manifest.layers[..] else {
            panic!("three layers")
        };
        let expected = LayerLabels {
            reference: reference.clone(),
            manifest: Digest::of(b"m"),
            explicit_index: Some(Digest::of(b"i")),
            layer: second.digest,
            size: Some(7),
            above: vec![LayerAbove {
                layer: third.digest,
                size: Some(7),
            }],
        };
        let read = LayerLabels::parse(&built.into_iter().collect()).unwrap();
        assert_eq!(read, expected);
    }

    #[test]
    fn every_label_fits_into_containerds_limit() {
        let manifest = manifest(120);
        let labels = ImageLabels {
            reference: &"localhost:5000/app:1".parse().unwrap(),
            manifest_digest: Digest::of(b"m"),
            manifest: &manifest,
            index_digest: None,
            eager: false,
        }
        .for_layer(0, Digest::of(b"c"));
        for (key, value) in &labels {
            assert!(key.len() + value.len() <= MAX_LENGTH, "{key}");
        }
        let digests = || labels[IMAGE_LAYERS].split(',');
        assert!(digests().all(|item| item.parse::<Digest>().is_ok()));
        assert!(digests().count() > 50);
    }
}
