//! Compares the labels of a Prepare with the images that containerd has.
//!
//! containerd copies every annotation of a layer that begins with `containerd.io/snapshot/` to the
//! labels of its Prepare, so that labels which the client does not send itself are the image's.

use soci_containerd::labels::INDEX_DIGEST;
use soci_layer::LayerRefusal;
use soci_oci::{Descriptor, Digest};

use crate::image_layer::ImageLayer;
use crate::image_store::{ImageStore, StoredImage};

/// Checks that containerd has the manifest that the labels name, that it is from the repository
/// that they name, and that it lists the layer at the position that is prepared. Ignores an explicit
/// index that the manifest's annotations set.
///
/// If containerd's image store does not answer, the labels are believed, and the layer is verified
/// before it is used.
pub(crate) async fn check_labels(
    images: &ImageStore,
    namespace: &str,
    target: Option<Digest>,
    layer: &mut ImageLayer,
) -> Result<(), LayerRefusal> {
    let key = &layer.image;
    let stored = match images.image(namespace, key.manifest).await {
        Ok(stored) => stored,
        Err(error) => {
            let error = soci_errors::chain(&error);
            tracing::debug!(
                error,
                "cannot compare the labels with containerd's image store"
            );
            return Ok(());
        }
    };
    let disagree = |reason: String| Err(LayerRefusal::ForeignLabels { reason });
    let Some(image) = stored else {
        return disagree(format!(
            "it has no image manifest {} in namespace {namespace}",
            key.manifest
        ));
    };
    if let Err(reason) = compare(&image, target, layer) {
        return disagree(reason);
    }
    let key = &layer.image;
    match images
        .is_from(namespace, key.manifest, &key.reference)
        .await
    {
        Ok(true) => Ok(()),
        Ok(false) => disagree(format!(
            "manifest {} is not from {}",
            key.manifest,
            key.reference.name()
        )),
        Err(error) => {
            let error = soci_errors::chain(&error);
            tracing::debug!(
                error,
                "cannot compare the labels with containerd's image store"
            );
            Ok(())
        }
    }
}

/// Looks the layer up in the manifest. Drops an explicit index that an annotation of it names.
fn compare(
    image: &StoredImage,
    target: Option<Digest>,
    layer: &mut ImageLayer,
) -> Result<(), String> {
    let layers = image.manifest.layers.iter().zip(&image.chain_ids);
    let is_meant = |(listed, chain): &(&Descriptor, &Digest)| {
        listed.digest == layer.layer && target.is_none_or(|target| target == **chain)
    };
    let listed: Vec<&Descriptor> = layers.filter(is_meant).map(|(listed, _)| listed).collect();
    if listed.is_empty() {
        return Err(format!(
            "manifest {} does not have layer {} at this position",
            image.digest, layer.layer
        ));
    }
    let Some(explicit) = layer.image.explicit_index else {
        return Ok(());
    };
    let of_image = listed.iter().any(|listed| {
        let annotation = listed.annotations.get(INDEX_DIGEST);
        annotation.is_some_and(|value| value.parse() == Ok(explicit))
    });
    if of_image {
        tracing::warn!(
            index = %explicit,
            "ignoring an index label that an annotation of the image's layer sets"
        );
        layer.image.explicit_index = None;
    }
    Ok(())
}
