//! Image manifests, indexes and the part of the image configuration that we read.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Descriptor, Digest, DigestError, annotations};

/// An image manifest (OCI image spec, `manifest.md`); also the shape of a SOCI index.
/// Fields are in the order in which Go writes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// The manifest's own media type.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// The type of an artifact that is not an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The configuration blob.
    pub config: Descriptor,
    /// The layers, lowest first.
    #[serde(default, deserialize_with = "null_is_default")]
    pub layers: Vec<Descriptor>,
    /// The manifest that this one refers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Annotations, sorted by key.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "null_is_default"
    )]
    pub annotations: BTreeMap<String, String>,
}

impl Manifest {
    /// Returns the SOCI index of version 2 that the manifest of an image names, if it names one.
    pub fn soci_index(&self) -> Option<Result<Digest, DigestError>> {
        let named = self.annotations.get(annotations::INDEX_DIGEST)?;
        Some(named.parse())
    }
}

/// An image index (OCI image spec, `image-index.md`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// The index's own media type.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// The type of an index of artifacts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The manifests.
    #[serde(default, deserialize_with = "null_is_default")]
    pub manifests: Vec<Descriptor>,
    /// The manifest that this index refers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Annotations, sorted by key.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "null_is_default"
    )]
    pub annotations: BTreeMap<String, String>,
}

/// The part of an image's configuration that we read (OCI image spec, `config.md`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ImageConfig {
    /// The architecture that the image is for.
    #[serde(default)]
    pub architecture: String,
    /// The operating system that the image is for.
    #[serde(default)]
    pub os: String,
    /// The variant of the architecture.
    #[serde(default)]
    pub variant: Option<String>,
    /// The layers' uncompressed digests.
    pub rootfs: RootFs,
}

/// The layers' uncompressed digests.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RootFs {
    /// sha256 of each uncompressed layer, lowest first.
    #[serde(default)]
    pub diff_ids: Vec<Digest>,
}

impl RootFs {
    /// Computes the chain ID of every layer, lowest first: `chain[0] = diff[0]`,
    /// `chain[n] = sha256(chain[n-1] + " " + diff[n])` (OCI image spec, `config.md`).
    #[must_use]
    pub fn chain_ids(&self) -> Vec<Digest> {
        let mut chain: Vec<Digest> = Vec::with_capacity(self.diff_ids.len());
        for diff in &self.diff_ids {
            chain.push(match chain.last() {
                None => *diff,
                Some(below) => Digest::of(format!("{below} {diff}").as_bytes()),
            });
        }
        chain
    }
}

/// Deserializes `null` as an empty value: Go writes nil slices and maps like that.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_ids_follow_the_specification() {
        let [a, b] = [Digest::of(b"a"), Digest::of(b"b")];
        let chain = RootFs {
            diff_ids: vec![a, b],
        }
        .chain_ids();
        assert_eq!(chain[0], a);
        assert_eq!(chain[1], Digest::of(format!("{a} {b}").as_bytes()));
    }
}
