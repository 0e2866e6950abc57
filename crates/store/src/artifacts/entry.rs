//! One entry: what is known of an artifact.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use soci_oci::{Digest, media_types};
use soci_ztoc::soci_index::SociIndex;

/// The kind of an artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ArtifactKind {
    /// A SOCI index, of either version.
    Index,
    /// The zTOC of a layer.
    Ztoc,
    /// The spans of a layer to be fetched first.
    Prefetch,
}

/// A SOCI index, a zTOC or a prefetch artifact that was made on this machine. The fields are v0.15's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// The digest of the artifact.
    pub digest: Digest,
    /// Its kind.
    pub kind: ArtifactKind,
    /// Its size in bytes.
    pub size: u64,
    /// What it was made of: the image manifest of an index, the layer of a zTOC or prefetch artifact.
    pub original_digest: Digest,
    /// What the image's name stood for (a manifest, or an image index of several platforms); of an
    /// index only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<Digest>,
    /// `os/architecture[/variant]`, of an index only; otherwise empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub platform: String,
    /// Where v0.15 says that the artifact belongs: the digest of what it was made of, or empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub location: String,
    /// The media type of the artifact.
    #[serde(default)]
    pub media_type: String,
    /// Which version of index: the media type of its config. Otherwise empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub artifact_type: String,
    /// The span size in bytes that a zTOC was built with; 0 if it is not known, and of others.
    #[serde(default)]
    pub span_size: u64,
    /// When it was made.
    pub created_at: SystemTime,
}

/// The image manifest that an index was made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexedImage {
    /// The digest of the manifest.
    pub manifest: Digest,
    /// What the image's name stands for: the manifest, or an image index that lists it.
    pub image: Digest,
    /// Its platform, `os/architecture[/variant]`.
    pub platform: String,
    /// When the index was made.
    pub created_at: SystemTime,
}

impl Artifact {
    /// The entries of an index and of all that it lists: what `create` and `convert` add, and
    /// `rebuild-db` finds.
    #[must_use]
    pub fn of_index(
        digest: Digest,
        size: u64,
        index: &SociIndex,
        image: &IndexedImage,
    ) -> Vec<Self> {
        let part = |kind, descriptor: &soci_oci::Descriptor, layer: Digest, span_size| Self {
            digest: descriptor.digest,
            kind,
            size: descriptor.size,
            original_digest: layer,
            image_digest: None,
            platform: String::new(),
            location: layer.to_string(),
            media_type: descriptor.media_type.clone(),
            artifact_type: String::new(),
            span_size,
            created_at: image.created_at,
        };
        let itself = Self {
            digest,
            kind: ArtifactKind::Index,
            size,
            original_digest: image.manifest,
            image_digest: Some(image.image),
            platform: image.platform.clone(),
            location: image.manifest.to_string(),
            media_type: media_types::OCI_MANIFEST.to_owned(),
            artifact_type: index.version.media_type().to_owned(),
            span_size: 0,
            created_at: image.created_at,
        };
        let ztocs = index.ztocs.iter().map(|ztoc| {
            let span_size = ztoc.span_size.unwrap_or_default();
            part(
                ArtifactKind::Ztoc,
                &ztoc.descriptor,
                ztoc.layer_digest,
                span_size,
            )
        });
        let prefetch = index.prefetch.iter().map(|prefetch| {
            let layer = prefetch.layer_digest;
            part(ArtifactKind::Prefetch, &prefetch.descriptor, layer, 0)
        });
        std::iter::once(itself)
            .chain(ztocs)
            .chain(prefetch)
            .collect()
    }
}

pub(super) fn encode(artifact: &Artifact) -> Vec<u8> {
    // Fails for times before 1970 only, which no clock of ours and no entry taken over has.
    serde_json::to_vec(artifact).unwrap_or_default()
}

pub(super) fn decode(bytes: &[u8]) -> serde_json::Result<Artifact> {
    serde_json::from_slice(bytes)
}
