//! The labels that the snapshotter reads and writes, and containerd's rules for labels in general.

use std::collections::BTreeMap;

use soci_layer::{IdMapError, IdMaps, IdRange};

/// Labels of a snapshot.
pub(crate) type Labels = BTreeMap<String, String>;

pub use soci_containerd::labels::{
    CLIENT_COPY, GID_MAP, HAS_INDEX, IMAGE_REF, LAYER_DIGEST, LAYER_SIZE, MANIFEST_DIGEST,
    MAX_LENGTH, NAMESPACE, REMOTE, REMOTE_VALUE, TARGET, UID_MAP,
};

/// A label that is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidLabel {
    /// Key and value together are longer than containerd accepts.
    #[error("label {key:?}: key and value have {length} bytes, more than {MAX_LENGTH}")]
    TooLong {
        /// The first 64 characters of the key.
        key: String,
        /// Length of key and value in bytes.
        length: usize,
    },
    /// The value of a label for id maps is malformed.
    #[error("the label {label} is malformed")]
    IdMap {
        /// The key of the label.
        label: &'static str,
        /// What is wrong with its value.
        source: IdMapError,
    },
}

/// Refuses labels that containerd refuses, and drops those that it does not keep: without a value.
pub(crate) fn check(mut labels: Labels) -> Result<Labels, InvalidLabel> {
    for (key, value) in &labels {
        let length = key.len().saturating_add(value.len());
        if length > MAX_LENGTH {
            return Err(InvalidLabel::TooLong {
                key: key.chars().take(64).collect(),
                length,
            });
        }
    }
    labels.retain(|_, value| !value.is_empty());
    Ok(labels)
}

/// Returns the id maps in the labels of a container's snapshot: both, or none.
pub(crate) fn id_maps(labels: &Labels) -> Result<Option<IdMaps>, InvalidLabel> {
    let map = |key: &'static str| -> Result<_, InvalidLabel> {
        let Some(text) = labels.get(key).filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        let ranges = IdRange::parse_map(text);
        ranges
            .map(Some)
            .map_err(|source| InvalidLabel::IdMap { label: key, source })
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
            Err(InvalidLabel::TooLong { length: 4097, .. })
        ));
    }

    #[test]
    fn one_label_alone_is_not_a_map() {
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
