//! The labels by which containerd's garbage collector knows what to keep.

use std::collections::HashMap;

use soci_oci::{Descriptor, Digest, Index, Manifest, media_types};

/// On content: the garbage collector keeps it and what it refers to. The value is ignored.
pub const ROOT: &str = "containerd.io/gc.root";
/// On a lease: time after which the collector removes it (RFC 3339).
pub const EXPIRE: &str = "containerd.io/gc.expire";
/// Beginning of the labels by which content or an image keeps other content.
pub const CONTENT: &str = "containerd.io/gc.ref.content";
/// On an image: the SOCI index that is kept as long as the image; further ones have `.1`, `.2`, … after it.
pub const SOCI_INDEX: &str = "containerd.io/gc.ref.content.soci-index";
/// Beginning of the labels by which content keeps a snapshot; the snapshotter's name follows.
pub const SNAPSHOT: &str = "containerd.io/gc.ref.snapshot";

/// Returns the labels of a manifest: it keeps its configuration and layers, or, as a SOCI index,
/// its zTOCs.
#[must_use]
pub fn of_manifest(manifest: &Manifest) -> HashMap<String, String> {
    let config = manifest.config.media_type.as_str();
    let kind = if matches!(
        config,
        media_types::SOCI_INDEX_V1 | media_types::SOCI_INDEX_V2
    ) {
        "ztoc"
    } else {
        "l"
    };
    let mut labels = HashMap::from([(
        format!("{CONTENT}.config"),
        manifest.config.digest.to_string(),
    )]);
    for (at, layer) in manifest.layers.iter().enumerate() {
        labels.insert(format!("{CONTENT}.{kind}.{at}"), layer.digest.to_string());
    }
    labels
}

/// Returns the labels of an image index that keeps all its manifests.
#[must_use]
pub fn of_index(index: &Index) -> HashMap<String, String> {
    let manifests = index.manifests.iter().enumerate();
    manifests.map(|(at, child)| of_child(at, child)).collect()
}

/// Returns the label by which an image index keeps its manifest at position `at`. A pull of one
/// platform keeps that one only; a later pull of another platform adds its own label.
#[must_use]
pub fn of_child(at: usize, manifest: &Descriptor) -> (String, String) {
    (format!("{CONTENT}.m.{at}"), manifest.digest.to_string())
}

/// Returns the label by which an image's configuration keeps the snapshot of the uppermost layer.
#[must_use]
pub fn of_config(snapshotter: &str, chain_id: Digest) -> (String, String) {
    (format!("{SNAPSHOT}.{snapshotter}"), chain_id.to_string())
}

/// Returns the label that makes content a root of the garbage collector, with the present time.
#[must_use]
pub fn root() -> (String, String) {
    (ROOT.to_owned(), seconds(jiff::Timestamp::now()))
}

/// Returns the label that limits the lifetime of a lease.
#[must_use]
pub fn expire(at: jiff::Timestamp) -> (String, String) {
    (EXPIRE.to_owned(), seconds(at))
}

fn seconds(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
