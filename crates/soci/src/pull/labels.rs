//! Labels: those that tell the snapshotter about a layer, and those that keep content alive.

use std::collections::HashMap;

use soci_oci::{Descriptor, Digest, Manifest, Reference};

/// Target name of a layer that is being unpacked.
pub(crate) const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";
const IMAGE_REF: &str = "containerd.io/snapshot/cri.image-ref";
const MANIFEST_DIGEST: &str = "containerd.io/snapshot/cri.manifest-digest";
const LAYER_DIGEST: &str = "containerd.io/snapshot/cri.layer-digest";
const IMAGE_LAYERS: &str = "containerd.io/snapshot/cri.image-layers";
const LAYER_SIZE: &str = "containerd.io/snapshot/remote/soci.size";
const IMAGE_LAYERS_SIZE: &str = "containerd.io/snapshot/remote/image.layers.size";
const INDEX_DIGEST: &str = "containerd.io/snapshot/remote/soci.index.digest";
/// On a committed snapshot: it is mounted lazily.
pub(crate) const REMOTE: &str = "containerd.io/snapshot/remote";
/// On a committed snapshot that the SOCI snapshotter made by itself.
pub(crate) const HAS_INDEX: &str = "containerd.io/snapshot/remote/has.soci.index.digest";
/// On a layer blob: its uncompressed digest.
pub(crate) const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// On content: what it keeps alive.
const GC_CONTENT: &str = "containerd.io/gc.ref.content";
/// containerd refuses labels whose key and value together are longer (bytes).
const MAX_LABEL: usize = 4096;

/// What identifies an image to the snapshotter.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ImageLabels<'a> {
    pub(crate) reference: &'a Reference,
    pub(crate) manifest_digest: Digest,
    pub(crate) manifest: &'a Manifest,
    pub(crate) index_digest: Option<Digest>,
}

impl ImageLabels<'_> {
    /// The labels for the layer at this position.
    pub(crate) fn of(&self, at: usize, chain_id: Digest) -> HashMap<String, String> {
        let above = self.manifest.layers.get(at..).unwrap_or_default();
        let mut labels = HashMap::from([
            (SNAPSHOT_REF.to_owned(), chain_id.to_string()),
            (IMAGE_REF.to_owned(), self.reference.to_string()),
            (MANIFEST_DIGEST.to_owned(), self.manifest_digest.to_string()),
        ]);
        if let Some(layer) = above.first() {
            labels.insert(LAYER_DIGEST.to_owned(), layer.digest.to_string());
            labels.insert(LAYER_SIZE.to_owned(), layer.size.to_string());
        }
        labels.insert(
            IMAGE_LAYERS.to_owned(),
            list(
                IMAGE_LAYERS,
                above.iter().map(|layer| layer.digest.to_string()),
            ),
        );
        labels.insert(
            IMAGE_LAYERS_SIZE.to_owned(),
            list(
                IMAGE_LAYERS_SIZE,
                above.iter().map(|layer| layer.size.to_string()),
            ),
        );
        if let Some(index) = self.index_digest {
            labels.insert(INDEX_DIGEST.to_owned(), index.to_string());
        }
        labels
    }
}

/// As many items, joined by commas, as fit into a label.
fn list(key: &str, items: impl Iterator<Item = String>) -> String {
    let mut out = String::new();
    for item in items {
        if key.len() + out.len() + 1 + item.len() > MAX_LABEL {
            break;
        }
        if !out.is_empty() {
            out.push(',');
        }
        out.push_str(&item);
    }
    out
}

/// Where a blob came from, so that a push can mount it.
pub(crate) fn source(reference: &Reference) -> (String, String) {
    (
        format!("containerd.io/distribution.source.{}", reference.registry()),
        reference.repository().to_owned(),
    )
}

/// What a manifest keeps alive.
pub(crate) fn manifest_children(manifest: &Manifest) -> HashMap<String, String> {
    let mut labels = HashMap::from([(
        format!("{GC_CONTENT}.config"),
        manifest.config.digest.to_string(),
    )]);
    for (at, layer) in manifest.layers.iter().enumerate() {
        labels.insert(format!("{GC_CONTENT}.l.{at}"), layer.digest.to_string());
    }
    labels
}

/// What an image index keeps alive: the manifest of the platform that was pulled, which stands at
/// this position. A pull of another platform later adds its own.
pub(crate) fn index_child(at: usize, manifest: &Descriptor) -> HashMap<String, String> {
    HashMap::from([(format!("{GC_CONTENT}.m.{at}"), manifest.digest.to_string())])
}

/// What a configuration keeps alive: the snapshot of the uppermost layer.
pub(crate) fn config_snapshot(snapshotter: &str, chain_id: Digest) -> HashMap<String, String> {
    HashMap::from([(
        format!("containerd.io/gc.ref.snapshot.{snapshotter}"),
        chain_id.to_string(),
    )])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

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

    #[test]
    fn every_label_fits_into_containerds_limit() {
        let manifest = manifest(120);
        let labels = ImageLabels {
            reference: &"localhost:5000/app:1".parse().unwrap(),
            manifest_digest: Digest::of(b"m"),
            manifest: &manifest,
            index_digest: None,
        }
        .of(0, Digest::of(b"c"));
        for (key, value) in &labels {
            assert!(key.len() + value.len() <= MAX_LABEL, "{key}");
        }
        assert!(
            labels[IMAGE_LAYERS]
                .split(',')
                .all(|item| item.parse::<Digest>().is_ok())
        );
        assert!(labels[IMAGE_LAYERS].split(',').count() > 50);
    }

    #[test]
    fn a_layer_is_described_with_those_above_it() {
        let manifest = manifest(3);
        let image = ImageLabels {
            reference: &"localhost:5000/app:1".parse().unwrap(),
            manifest_digest: Digest::of(b"m"),
            manifest: &manifest,
            index_digest: Some(Digest::of(b"i")),
        };
        let labels = image.of(1, Digest::of(b"c"));
        let [_, second, third] = &manifest.layers[..] else {
            panic!("three layers")
        };
        assert_eq!(labels[LAYER_DIGEST], second.digest.to_string());
        assert_eq!(
            labels[IMAGE_LAYERS],
            format!("{},{}", second.digest, third.digest)
        );
        assert_eq!(labels[IMAGE_LAYERS_SIZE], "7,7");
        assert_eq!(labels[LAYER_SIZE], "7");
        assert_eq!(labels[SNAPSHOT_REF], Digest::of(b"c").to_string());
        assert_eq!(labels[IMAGE_REF], "localhost:5000/app:1");
        assert_eq!(labels[INDEX_DIGEST], Digest::of(b"i").to_string());
    }
}
