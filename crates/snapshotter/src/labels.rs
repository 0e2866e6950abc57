//! The labels that steer the snapshotter, and containerd's rules for labels in general.

use std::collections::BTreeMap;

use soci_layer::{IdMaps, IdRange};

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

/// Returns the id maps in the labels of a container's snapshot: both, or none.
pub(crate) fn id_maps(labels: &Labels) -> Result<Option<IdMaps>, SnapshotterError> {
    let map = |key: &'static str| -> Result<_, SnapshotterError> {
        let Some(text) = labels.get(key).filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        let ranges = IdRange::parse_map(text).map_err(|error| SnapshotterError::InvalidIdMap {
            label: key,
            reason: error.to_string(),
        })?;
        Ok(Some(ranges))
    };
    let maps = map(UID_MAP)?.zip(map(GID_MAP)?);
    Ok(maps.map(|(uid, gid)| IdMaps { uid, gid }))
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
    fn one_label_alone_is_no_map() {
        let labels = Labels::from([(UID_MAP.to_owned(), "0:1:1".to_owned())]);
        assert_eq!(id_maps(&labels).unwrap(), None);
        let labels = Labels::from([
            (UID_MAP.to_owned(), "0:1:1".to_owned()),
            (GID_MAP.to_owned(), "0:2:1".to_owned()),
        ]);
        let maps = id_maps(&labels).unwrap().unwrap();
        assert_eq!(maps.map(0, 0), (1, 2));
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
