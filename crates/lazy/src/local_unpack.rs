//! Layers that cannot be lazy: fetched whole and unpacked by the daemon.

use std::sync::Arc;

use soci_layer::{Cause, LayerRefusal, LayerRequest, OverlayXattr};
use soci_telemetry::Meters;
use soci_telemetry::metrics::count;
use soci_unpack::{ApplyOptions, LayerOfImage, Target, Unpacker};
use tokio_util::sync::CancellationToken;

use crate::image_layer::ImageLayer;
use crate::index_files::FoundIndex;
use crate::mount_table::MountTable;
use crate::outages::Outages;

/// The layers of an image that cannot be lazy, as far as that is known.
#[derive(Clone, Copy)]
pub(crate) enum LayersToUnpack<'a> {
    /// None of them can.
    All,
    /// Those below the least size; no index was looked up.
    Small,
    /// Those, and the ones that the index does not list.
    SmallOrNotIn(&'a FoundIndex),
}

/// Unpacks layers, also on top of lazy ones.
pub(crate) struct LocalUnpack {
    pub(crate) unpacker: Unpacker,
    pub(crate) outages: Arc<Outages>,
    pub(crate) table: Arc<MountTable>,
    pub(crate) meters: Arc<Meters>,
    /// The attributes in which overlayfs looks for its marks.
    pub(crate) overlay_xattr: OverlayXattr,
    pub(crate) min_layer_size: u64,
}

impl LocalUnpack {
    /// Fetches, verifies and unpacks a layer.
    pub(crate) async fn unpack(
        &self,
        layer: LayerRequest,
        cancel: &CancellationToken,
    ) -> Result<(), LayerRefusal> {
        let unpacked = Box::pin(self.try_to_unpack(layer, cancel)).await;
        if unpacked.is_err() && !cancel.is_cancelled() {
            self.meters.count(count::LOCAL_MOUNT_FAILURE, "", 1);
        }
        unpacked
    }

    async fn try_to_unpack(
        &self,
        layer: LayerRequest,
        cancel: &CancellationToken,
    ) -> Result<(), LayerRefusal> {
        let labels = ImageLayer::from_labels(&layer.labels)?;
        let image = &labels.image;
        self.outages.check(&image.reference, image.manifest)?;
        let lower = self.table.lower_layers(&layer.parents);
        let lower = lower.map_err(LayerRefusal::unpack_failed)?;
        let target = Target {
            directory: layer.mountpoint,
            options: ApplyOptions {
                overlay_xattr: self.overlay_xattr,
                lower,
                ..ApplyOptions::default()
            },
        };
        let layer = LayerOfImage {
            namespace: layer.namespace,
            reference: labels.image.reference,
            manifest: labels.image.manifest,
            layer: labels.layer,
        };
        // Boxed: a request to a registry is a large future.
        let unpacked = Box::pin(self.unpacker.unpack(&layer, target, cancel)).await;
        let unpacked = unpacked.map_err(|error| {
            let is_outage = error.is_outage();
            let fault = error.fault();
            let source: Cause = Arc::new(error);
            if is_outage {
                let outages = &self.outages;
                outages.note(&layer.reference, layer.manifest, source.clone());
            }
            LayerRefusal::UnpackFailed { source, fault }
        })?;
        tracing::debug!(
            layer = %layer.layer,
            size = unpacked.compressed_size,
            diff_id = %unpacked.diff_id,
            "layer unpacked"
        );
        Ok(())
    }

    /// Begins to fetch the layers above that cannot be lazy, because their Prepares follow.
    pub(crate) fn fetch_above(
        &self,
        namespace: &str,
        below: &ImageLayer,
        which: LayersToUnpack<'_>,
    ) {
        let image = &below.image;
        if self
            .outages
            .check(&image.reference, image.manifest)
            .is_err()
        {
            return;
        }
        for above in &below.above {
            let too_small = above.size.is_some_and(|size| size < self.min_layer_size);
            let unpacked = match which {
                LayersToUnpack::All => true,
                LayersToUnpack::Small => too_small,
                LayersToUnpack::SmallOrNotIn(found) => {
                    too_small || found.index.ztoc_for(&above.layer).is_none()
                }
            };
            if unpacked {
                self.unpacker.fetch_ahead(LayerOfImage {
                    namespace: namespace.to_owned(),
                    reference: below.image.reference.clone(),
                    manifest: below.image.manifest,
                    layer: above.layer,
                });
            }
        }
    }
}
