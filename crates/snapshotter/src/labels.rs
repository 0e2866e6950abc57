//! The labels that steer the snapshotter, and containerd's rules for labels in general.

use std::collections::BTreeMap;

use crate::error::SnapshotterError;

/// Labels of a snapshot.
pub(crate) type Labels = BTreeMap<String, String>;

/// Names the committed snapshot that a Prepare is for: an image layer is being unpacked.
pub const TARGET: &str = "containerd.io/snapshot.ref";
/// Marks a committed snapshot as lazily mounted by us.
pub const REMOTE: &str = "containerd.io/snapshot/remote";
/// The value of [`REMOTE`].
pub const REMOTE_VALUE: &str = "remote snapshot";
/// Marks a committed snapshot whose image has a SOCI index: `true`.
pub const HAS_INDEX: &str = "containerd.io/snapshot/remote/has.soci.index.digest";
/// The namespace of the client whose Prepare we committed.
pub const NAMESPACE: &str = "containerd.io/snapshot/remote/namespace";
/// The user ids of a container's user namespace, on its own snapshot: `container:host:length[,…]`.
pub const UID_MAP: &str = "containerd.io/snapshot/uidmapping";
/// The same for group ids.
pub const GID_MAP: &str = "containerd.io/snapshot/gidmapping";
/// The digest of the layer that is being unpacked.
pub const LAYER_DIGEST: &str = "containerd.io/snapshot/cri.layer-digest";
/// The reference of the image that is being pulled.
pub const IMAGE_REF: &str = "containerd.io/snapshot/cri.image-ref";
/// The digest of the manifest of the image that is being pulled.
pub const MANIFEST_DIGEST: &str = "containerd.io/snapshot/cri.manifest-digest";
/// The compressed size in bytes of the layer that is being unpacked.
pub const LAYER_SIZE: &str = "containerd.io/snapshot/remote/soci.size";

/// containerd's limit for key and value of one label together, in bytes.
const MAX_LABEL: usize = 4096;

/// Refuses what containerd refuses, and drops what it does not keep: labels without a value.
pub(crate) fn check(mut labels: Labels) -> Result<Labels, SnapshotterError> {
    for (key, value) in &labels {
        let length = key.len().saturating_add(value.len());
        if length > MAX_LABEL {
            return Err(SnapshotterError::LabelTooLong {
                key: key.chars().take(64).collect(),
                length,
                limit: MAX_LABEL,
            });
        }
    }
    labels.retain(|_, value| !value.is_empty());
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_and_value_together_may_have_4096_bytes() {
        let labels = |length| Labels::from([("k".to_owned(), "v".repeat(length))]);
        assert_eq!(check(labels(4095)).unwrap().len(), 1);
        assert!(matches!(
            check(labels(4096)),
            Err(SnapshotterError::LabelTooLong { length: 4097, .. })
        ));
    }

    #[test]
    fn a_label_without_a_value_is_not_kept() {
        assert!(
            check(Labels::from([("k".to_owned(), String::new())]))
                .unwrap()
                .is_empty()
        );
    }
}
