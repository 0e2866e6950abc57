//! The labels of a Prepare, as far as eager pulls need them.

use std::collections::BTreeMap;

use soci_containerd::labels::{IMAGE_LAYERS, LayerLabels, TARGET};
use soci_layer::LayerRefusal;

use crate::image::{ImageToPull, WantedLayer};

/// Reads image and layer of a Prepare.
///
/// # Errors
/// A required label is missing or malformed.
pub(crate) fn read(
    namespace: &str,
    labels: &BTreeMap<String, String>,
) -> Result<(ImageToPull, WantedLayer), LayerRefusal> {
    let read = LayerLabels::parse(labels)?;
    let image = ImageToPull {
        namespace: namespace.to_owned(),
        reference: read.reference,
        manifest: read.manifest,
    };
    let list = labels.get(IMAGE_LAYERS);
    let wanted = WantedLayer {
        layer: read.layer,
        chain_id: labels.get(TARGET).and_then(|target| target.parse().ok()),
        upwards: list.map_or(0, |list| list.split(',').count()),
    };
    Ok((image, wanted))
}
