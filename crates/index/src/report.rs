//! Whether the layers of an image at a registry can be lazy, and why not.

use std::fmt;

use bytes::Bytes;
use soci_oci::media_types::{LayerCompression, layer_compression};
use soci_oci::{Descriptor, Digest, Manifest, Reference, annotations, media_types};
use soci_registry::Client;
use soci_ztoc::soci_index::SociIndex;

use crate::IndexError;
use crate::source::check_document_size;

/// What the registry's SOCI index says about an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LazyReport {
    /// The index, or why there is none.
    pub index: Result<Digest, String>,
    /// For each layer of the manifest, lowest first.
    pub layers: Vec<(Digest, LayerVerdict)>,
}

/// What can be expected of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LayerVerdict {
    /// It has a zTOC and can be mounted lazily.
    Lazy {
        /// The zTOC blob.
        ztoc: Digest,
    },
    /// It cannot, because the image has no index that is used.
    NoIndex {
        /// Why.
        reason: String,
    },
    /// The index does not describe it.
    NoZtoc {
        /// Why, as far as can be told.
        reason: String,
    },
}

impl fmt::Display for LayerVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lazy { ztoc } => write!(f, "zTOC {ztoc}"),
            Self::NoIndex { reason } | Self::NoZtoc { reason } => f.write_str(reason),
        }
    }
}

/// Asks the registry for the SOCI index of an image, the way the daemon does by default: an
/// explicit digest, else the annotation of the image manifest.
pub async fn lazy_report(
    client: &Client,
    reference: &Reference,
    manifest_digest: Digest,
    manifest: &Manifest,
    explicit: Option<Digest>,
) -> LazyReport {
    let found = find(client, reference, manifest_digest, manifest, explicit).await;
    let layers = manifest
        .layers
        .iter()
        .map(|layer| {
            let verdict = match &found {
                Err(reason) => LayerVerdict::NoIndex {
                    reason: reason.clone(),
                },
                Ok((_, index)) => match index.ztoc_for(&layer.digest) {
                    Some(ztoc) => LayerVerdict::Lazy {
                        ztoc: ztoc.descriptor.digest,
                    },
                    None => LayerVerdict::NoZtoc {
                        reason: no_ztoc(layer),
                    },
                },
            };
            (layer.digest, verdict)
        })
        .collect();
    LazyReport {
        index: found.map(|(digest, _)| digest),
        layers,
    }
}

fn no_ztoc(layer: &Descriptor) -> String {
    match layer_compression(&layer.media_type) {
        LayerCompression::Zstd => "no zTOC: zstd layers cannot be indexed".to_owned(),
        LayerCompression::Unknown => {
            format!(
                "no zTOC: layers of type {} cannot be indexed",
                layer.media_type
            )
        }
        LayerCompression::None | LayerCompression::Gzip => {
            "no zTOC: the layer was below --min-layer-size when the image was indexed".to_owned()
        }
    }
}

async fn find(
    client: &Client,
    reference: &Reference,
    manifest_digest: Digest,
    manifest: &Manifest,
    explicit: Option<Digest>,
) -> Result<(Digest, SociIndex), String> {
    let annotated = manifest
        .annotations
        .get(annotations::INDEX_DIGEST)
        .map(|text| text.parse::<Digest>())
        .transpose()
        .map_err(|e| format!("no usable SOCI index: the manifest's annotation is wrong: {e}"))?;
    let Some(digest) = explicit.or(annotated) else {
        let v1 = client
            .referrers(reference, manifest_digest, Some(media_types::SOCI_INDEX_V1))
            .await
            .is_ok_and(|referrers| !referrers.is_empty());
        return Err(if v1 {
            "no SOCI index v2; there is one of v1, used with [pull_modes.soci_v1] enable = true"
        } else {
            "no SOCI index (make one with `soci convert`)"
        }
        .to_owned());
    };
    let read = async {
        let (descriptor, bytes): (Descriptor, Bytes) = client.manifest(reference, digest).await?;
        check_document_size(&descriptor, &reference.to_string())?;
        Ok::<_, IndexError>(bytes)
    };
    let bytes = read
        .await
        .map_err(|e| format!("the SOCI index {digest} cannot be fetched: {e}"))?;
    let index = SociIndex::parse(&bytes).map_err(|e| format!("{digest}: {e}"))?;
    Ok((digest, index))
}
