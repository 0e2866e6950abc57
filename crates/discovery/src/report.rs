//! Which layers of an image can be lazy, and why the others cannot.

use soci_layer::LayerRefusal;
use soci_oci::media_types::{LayerCompression, layer_compression};
use soci_oci::{Descriptor, Digest, Manifest};

use crate::{Found, ImageQuery, ManifestSource, NoIndex, Policy, find};

/// What the registry knows about an image.
#[derive(Debug, Clone)]
pub struct LazyReport {
    /// The index, or why there is none.
    pub index: Result<Found, NoIndex>,
    /// The zTOC of each layer of the manifest, lowest first, or why the layer cannot be lazy.
    pub layers: Vec<(Digest, Result<Digest, LayerRefusal>)>,
}

/// Looks up the index of an image, of whichever kind, and the zTOCs of its layers.
pub async fn lazy_report(
    source: &dyn ManifestSource,
    digest: Digest,
    manifest: &Manifest,
    explicit: Option<Digest>,
) -> LazyReport {
    let image = ImageQuery {
        digest,
        manifest: Some(manifest),
        explicit,
    };
    let index = find(source, image, Policy::ALL).await;
    let ztoc = |layer: &Descriptor| match &index {
        Err(none) => Err(none.clone().into()),
        Ok(found) => match found.index.ztoc_for(&layer.digest) {
            Some(ztoc) => Ok(ztoc.descriptor.digest),
            None => Err(LayerRefusal::no_ztoc(reason_without_ztoc(layer))),
        },
    };
    let layers = manifest.layers.iter();
    let layers = layers.map(|layer| (layer.digest, ztoc(layer))).collect();
    LazyReport { index, layers }
}

/// Explains why the index of an image has no zTOC for a layer, as far as its descriptor shows.
#[must_use]
pub fn reason_without_ztoc(layer: &Descriptor) -> String {
    match layer_compression(&layer.media_type) {
        LayerCompression::Zstd => "zstd layers cannot be indexed".to_owned(),
        LayerCompression::Unknown => {
            format!("layers of type {} cannot be indexed", layer.media_type)
        }
        LayerCompression::None | LayerCompression::Gzip => {
            "it was below --min-layer-size when the image was indexed".to_owned()
        }
    }
}
