//! A layer that cannot be lazy: fetched whole and unpacked.

use soci_layer::{LayerRefusal, OverlayXattr, ParentLayer, UnpackRequest};
use soci_unpack::{ApplyOptions, LayerOfImage, LowerDirectory, LowerLayer, Target, UnpackError};
use tokio_util::sync::CancellationToken;

use crate::discovery::FoundIndex;
use crate::labels::ImageLayer;
use crate::lower_tree::LowerTree;
use crate::provider::Shared;

impl Shared {
    pub(crate) async fn unpack(
        &self,
        request: UnpackRequest,
        cancel: &CancellationToken,
    ) -> Result<(), LayerRefusal> {
        let UnpackRequest { layer, parents } = request;
        let labels = ImageLayer::from_labels(&layer.labels)?;
        let lower = parents
            .iter()
            .map(|parent| self.lower(parent))
            .collect::<Result<_, _>>()?;
        let target = Target {
            directory: layer.mountpoint,
            options: ApplyOptions {
                overlay_xattr: OverlayXattr::for_mount(self.config.userxattr),
                lower,
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
        let unpacked = unpacked.map_err(|error: UnpackError| LayerRefusal::unpack_failed(error))?;
        tracing::debug!(
            layer = %layer.layer,
            size = unpacked.compressed_size,
            diff_id = %unpacked.diff_id,
            "a layer is unpacked"
        );
        Ok(())
    }

    /// Begins to fetch the layers above that will be asked for next and cannot be lazy: those that the
    /// index does not list, if it is known, and those that are too small.
    pub(crate) fn fetch_above(
        &self,
        namespace: &str,
        request: &ImageLayer,
        found: Option<&FoundIndex>,
    ) {
        for above in &request.above {
            let too_small = above
                .size
                .is_some_and(|size| size < self.config.min_layer_size);
            let unlisted = found.is_some_and(|found| found.index.ztoc_for(&above.layer).is_none());
            if too_small || unlisted {
                self.unpacker.fetch_ahead(LayerOfImage {
                    namespace: namespace.to_owned(),
                    reference: request.image.reference.clone(),
                    manifest: request.image.manifest,
                    layer: above.layer,
                });
            }
        }
    }

    /// A layer below, read without a request to one of our own mounts.
    fn lower(&self, parent: &ParentLayer) -> Result<Box<dyn LowerLayer>, LayerRefusal> {
        if !parent.lazy {
            return Ok(Box::new(LowerDirectory(parent.directory.clone())));
        }
        match self.tree_at(&parent.directory) {
            Some(tree) => Ok(Box::new(LowerTree(tree))),
            None => Err(LayerRefusal::unpack_failed(format!(
                "the lazy layer below is not mounted at {}",
                parent.directory.display()
            ))),
        }
    }
}
