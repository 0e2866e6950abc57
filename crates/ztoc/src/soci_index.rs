//! The SOCI index: an OCI manifest that lists the zTOCs of an image's layers.

use std::collections::{BTreeMap, HashSet};

use soci_oci::{Descriptor, Digest, Manifest, annotations, media_types};

/// Which form of SOCI index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IndexVersion {
    /// Refers to its image with `subject`; found through the referrers API.
    V1,
    /// Referred to by an annotation of its image's manifest.
    V2,
}

impl IndexVersion {
    /// The media type of the index's config, and its artifact type.
    #[must_use]
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::V1 => media_types::SOCI_INDEX_V1,
            Self::V2 => media_types::SOCI_INDEX_V2,
        }
    }
}

/// A zTOC in a SOCI index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZtocDescriptor {
    /// The zTOC blob's descriptor, annotations included.
    pub descriptor: Descriptor,
    /// The layer that it describes.
    pub layer_digest: Digest,
    /// The media type of that layer.
    pub layer_media_type: String,
    /// The span size that it was built with, in bytes, if the index says so.
    pub span_size: Option<u64>,
    /// The layer has no extended attributes worth a request.
    pub disable_xattrs: bool,
}

/// A prefetch artifact in a SOCI index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrefetchDescriptor {
    /// The artifact's descriptor, annotations included.
    pub descriptor: Descriptor,
    /// The layer whose spans it lists.
    pub layer_digest: Digest,
}

/// A SOCI index, read into its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SociIndex {
    /// Which form.
    pub version: IndexVersion,
    /// The zTOCs, in the order of the image's layers.
    pub ztocs: Vec<ZtocDescriptor>,
    /// The prefetch artifacts.
    pub prefetch: Vec<PrefetchDescriptor>,
    /// The image manifest that a v1 index belongs to.
    pub subject: Option<Descriptor>,
    /// The index's annotations.
    pub annotations: BTreeMap<String, String>,
    /// The manifest as it was read.
    pub manifest: Manifest,
}

/// Why bytes are not a SOCI index.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SociIndexError {
    /// No JSON, or not an image manifest.
    #[error("the SOCI index is not an OCI image manifest: {0}")]
    Json(#[from] serde_json::Error),
    /// Larger than an index can be.
    #[error("the SOCI index has {size} bytes, more than the limit of {limit}")]
    TooLarge {
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// Something in it cannot be.
    #[error("the SOCI index is invalid: {0}")]
    Invalid(String),
}

/// No manifest is larger: registries refuse those above 4 MiB.
const SIZE_LIMIT: u64 = 4 << 20;

/// The one config of a SOCI index.
const EMPTY_CONFIG: &[u8] = b"{}";

impl SociIndex {
    /// Reads a SOCI index.
    ///
    /// # Errors
    /// [`SociIndexError`] when it is none.
    pub fn parse(bytes: &[u8]) -> Result<Self, SociIndexError> {
        let size = bytes.len() as u64;
        if size > SIZE_LIMIT {
            return Err(SociIndexError::TooLarge {
                size,
                limit: SIZE_LIMIT,
            });
        }
        let manifest: Manifest = serde_json::from_slice(bytes)?;
        let version = index_version(&manifest)?;
        let mut index = Self {
            version,
            ztocs: Vec::new(),
            prefetch: Vec::new(),
            subject: manifest.subject.clone(),
            annotations: manifest.annotations.clone(),
            manifest,
        };
        for descriptor in &index.manifest.layers {
            match descriptor.media_type.as_str() {
                media_types::ZTOC => index.ztocs.push(ZtocDescriptor::read(descriptor)?),
                media_types::PREFETCH => index.prefetch.push(PrefetchDescriptor::read(descriptor)?),
                // A kind of blob that a later version lists.
                _ => {}
            }
        }
        Ok(index)
    }

    /// Writes the index in the bytes that Go's encoder would write, which those that re-encode a
    /// fetched index depend on.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        // Writing a structure of strings and numbers to memory cannot fail.
        soci_oci::json::to_vec(&self.manifest).unwrap_or_default()
    }

    /// A new index. `ztocs` are in the order of the image's layers; `subject` is the image manifest
    /// of a v1 index.
    #[must_use]
    pub fn new(
        version: IndexVersion,
        ztocs: Vec<ZtocDescriptor>,
        prefetch: Vec<PrefetchDescriptor>,
        subject: Option<Descriptor>,
        annotations: BTreeMap<String, String>,
    ) -> Self {
        let ztoc_layers = ztocs.iter().map(|ztoc| ztoc.descriptor.clone());
        let prefetch_layers = prefetch.iter().map(|prefetch| prefetch.descriptor.clone());
        let manifest = Manifest {
            schema_version: 2,
            media_type: media_types::OCI_MANIFEST.to_owned(),
            artifact_type: None,
            config: Descriptor::of(version.media_type(), EMPTY_CONFIG),
            layers: ztoc_layers.chain(prefetch_layers).collect(),
            subject: subject.clone(),
            annotations: annotations.clone(),
        };
        Self {
            version,
            ztocs,
            prefetch,
            subject,
            annotations,
            manifest,
        }
    }

    /// Number of zTOCs that are never used, because one before them describes the same layer.
    #[must_use]
    pub fn unused_ztocs(&self) -> usize {
        let mut seen = HashSet::new();
        let again = |ztoc: &&ZtocDescriptor| !seen.insert(ztoc.layer_digest);
        self.ztocs.iter().filter(again).count()
    }

    /// The zTOC of a layer: of several the first.
    #[must_use]
    pub fn ztoc_for(&self, layer: &Digest) -> Option<&ZtocDescriptor> {
        self.ztocs.iter().find(|ztoc| ztoc.layer_digest == *layer)
    }

    /// The prefetch artifact of a layer.
    #[must_use]
    pub fn prefetch_for(&self, layer: &Digest) -> Option<&PrefetchDescriptor> {
        self.prefetch
            .iter()
            .find(|prefetch| prefetch.layer_digest == *layer)
    }

    /// The program that built it, as it says.
    #[must_use]
    pub fn build_tool_identifier(&self) -> Option<&str> {
        self.annotations
            .get(annotations::BUILD_TOOL_IDENTIFIER)
            .map(String::as_str)
    }
}

/// Which form of index a manifest is. The first v1 indexes said it with `artifactType`.
fn index_version(manifest: &Manifest) -> Result<IndexVersion, SociIndexError> {
    let kinds = [
        manifest.config.media_type.as_str(),
        manifest.artifact_type.as_deref().unwrap_or(""),
    ];
    for kind in kinds {
        match kind {
            media_types::SOCI_INDEX_V1 => return Ok(IndexVersion::V1),
            media_types::SOCI_INDEX_V2 => return Ok(IndexVersion::V2),
            _ => {}
        }
    }
    Err(SociIndexError::Invalid(format!(
        "its config has the media type {:?} instead of {:?} or {:?}",
        manifest.config.media_type,
        media_types::SOCI_INDEX_V1,
        media_types::SOCI_INDEX_V2
    )))
}

/// The layer that an entry of the index belongs to.
fn layer_digest(descriptor: &Descriptor) -> Result<Digest, SociIndexError> {
    let text = descriptor
        .annotation(annotations::IMAGE_LAYER_DIGEST)
        .ok_or_else(|| {
            SociIndexError::Invalid(format!(
                "its entry {} has no annotation {}",
                descriptor.digest,
                annotations::IMAGE_LAYER_DIGEST
            ))
        })?;
    text.parse().map_err(|error| {
        SociIndexError::Invalid(format!(
            "its entry {} names no layer: {error}",
            descriptor.digest
        ))
    })
}

impl ZtocDescriptor {
    fn read(descriptor: &Descriptor) -> Result<Self, SociIndexError> {
        let annotation = |key| descriptor.annotation(key);
        Ok(Self {
            layer_digest: layer_digest(descriptor)?,
            layer_media_type: annotation(annotations::IMAGE_LAYER_MEDIA_TYPE)
                .unwrap_or_default()
                .to_owned(),
            span_size: annotation(annotations::SPAN_SIZE).and_then(|size| size.parse().ok()),
            disable_xattrs: annotation(annotations::DISABLE_XATTRS) == Some("true"),
            descriptor: descriptor.clone(),
        })
    }

    /// The descriptor of a zTOC blob in an index.
    #[must_use]
    pub fn new(
        ztoc_blob: &[u8],
        layer_digest: Digest,
        layer_media_type: &str,
        span_size: u64,
        disable_xattrs: bool,
    ) -> Self {
        let mut descriptor = Descriptor::of(media_types::ZTOC, ztoc_blob)
            .annotated(annotations::IMAGE_LAYER_DIGEST, layer_digest.to_string())
            .annotated(annotations::IMAGE_LAYER_MEDIA_TYPE, layer_media_type)
            .annotated(annotations::SPAN_SIZE, span_size.to_string());
        if disable_xattrs {
            descriptor = descriptor.annotated(annotations::DISABLE_XATTRS, "true");
        }
        Self {
            descriptor,
            layer_digest,
            layer_media_type: layer_media_type.to_owned(),
            span_size: Some(span_size),
            disable_xattrs,
        }
    }
}

impl PrefetchDescriptor {
    fn read(descriptor: &Descriptor) -> Result<Self, SociIndexError> {
        Ok(Self {
            layer_digest: layer_digest(descriptor)?,
            descriptor: descriptor.clone(),
        })
    }

    /// The descriptor of a prefetch artifact in an index.
    #[must_use]
    pub fn new(artifact: &[u8], layer_digest: Digest) -> Self {
        Self {
            descriptor: Descriptor::of(media_types::PREFETCH, artifact)
                .annotated(annotations::IMAGE_LAYER_DIGEST, layer_digest.to_string()),
            layer_digest,
        }
    }
}
