//! The SOCI index: an OCI manifest that lists the zTOCs of an image's layers.

use std::collections::BTreeMap;

use oci::{Descriptor, Digest, Manifest, annotations, media_types};

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
    /// The layer has no extended attributes worth asking for.
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
pub enum IndexError {
    /// No JSON, or not an image manifest.
    #[error("the SOCI index is no OCI image manifest: {0}")]
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

impl SociIndex {
    /// Reads a SOCI index.
    ///
    /// # Errors
    /// [`IndexError`] when it is none.
    pub fn parse(_bytes: &[u8]) -> Result<Self, IndexError> {
        todo!()
    }

    /// Writes the index from its typed parts, in the bytes that Go's encoder would write.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        todo!()
    }

    /// A new index. `layers` are in the order of the image's layers.
    #[must_use]
    pub fn new(
        _version: IndexVersion,
        _ztocs: Vec<ZtocDescriptor>,
        _prefetch: Vec<PrefetchDescriptor>,
        _subject: Option<Descriptor>,
        _annotations: BTreeMap<String, String>,
    ) -> Self {
        todo!()
    }

    /// The zTOC of a layer.
    #[must_use]
    pub fn ztoc_for(&self, layer: &Digest) -> Option<&ZtocDescriptor> {
        self.ztocs.iter().find(|ztoc| ztoc.layer_digest == *layer)
    }

    /// The prefetch artifact of a layer.
    #[must_use]
    pub fn prefetch_for(&self, layer: &Digest) -> Option<&PrefetchDescriptor> {
        self.prefetch.iter().find(|prefetch| prefetch.layer_digest == *layer)
    }

    /// The program that built it, as it says.
    #[must_use]
    pub fn build_tool_identifier(&self) -> Option<&str> {
        self.annotations.get(annotations::BUILD_TOOL_IDENTIFIER).map(String::as_str)
    }
}

impl ZtocDescriptor {
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
