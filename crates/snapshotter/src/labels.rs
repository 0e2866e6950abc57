//! The labels that steer the snapshotter, and containerd's rules for labels in general.

use std::collections::BTreeMap;

use crate::error::SnapshotterError;

/// Labels of a snapshot.
pub(crate) type Labels = BTreeMap<String, String>;

pub use soci_containerd::labels::{
    GID_MAP, HAS_INDEX, IMAGE_REF, LAYER_DIGEST, LAYER_SIZE, MANIFEST_DIGEST, MAX_LENGTH,
    NAMESPACE, REMOTE, REMOTE_VALUE, TARGET, UID_MAP,
};

/// Refuses what containerd refuses, and drops what it does not keep: labels without a value.
pub(crate) fn check(mut labels: Labels) -> Result<Labels, SnapshotterError> {
    for (key, value) in &labels {
        let length = key.len().saturating_add(value.len());
        if length > MAX_LENGTH {
            return Err(SnapshotterError::LabelTooLong {
                key: key.chars().take(64).collect(),
                length,
                limit: MAX_LENGTH,
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
