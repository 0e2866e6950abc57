//! The labels by which containerd's collector knows what keeps what alive.

use std::collections::HashMap;

use soci_oci::{Index, Manifest, media_types};

/// On content and images: what it keeps alive.
const CONTENT: &str = "containerd.io/gc.ref.content";

/// What a manifest keeps alive: its config and its layers, or the zTOCs of a SOCI index.
pub(super) fn of_manifest(manifest: &Manifest) -> HashMap<String, String> {
    let config = manifest.config.media_type.as_str();
    let soci = matches!(
        config,
        media_types::SOCI_INDEX_V1 | media_types::SOCI_INDEX_V2
    );
    let kind = if soci { "ztoc" } else { "l" };
    let mut labels = HashMap::from([(
        format!("{CONTENT}.config"),
        manifest.config.digest.to_string(),
    )]);
    for (at, layer) in manifest.layers.iter().enumerate() {
        labels.insert(format!("{CONTENT}.{kind}.{at}"), layer.digest.to_string());
    }
    labels
}

/// What an image index keeps alive: its manifests.
pub(super) fn of_index(index: &Index) -> HashMap<String, String> {
    let manifests = index.manifests.iter().enumerate();
    manifests
        .map(|(at, manifest)| (format!("{CONTENT}.m.{at}"), manifest.digest.to_string()))
        .collect()
}
