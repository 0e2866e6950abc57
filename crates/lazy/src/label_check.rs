//! Compares the labels of a Prepare with the images that containerd has.
//!
//! containerd copies every annotation of a layer that begins with `containerd.io/snapshot/` to the
//! labels of its Prepare, so that labels which the client does not send itself are the image's.

use soci_containerd::labels::{ChainPosition, INDEX_DIGEST, TARGET, chain_id};
use soci_layer::{LayerRefusal, LayerRequest};
use soci_oci::Descriptor;

use crate::image_layer::ImageLayer;
use crate::image_store::{ImageStore, ImageStoreError, StoredImage};

/// Checks that containerd has the manifest that the labels of a request name, that it is from the
/// repository that they name, and that it lists the layer at the position that is prepared. Ignores
/// an explicit index that the manifest's annotations set.
///
/// If containerd's image store does not answer, the labels are believed, and the layer is verified
/// before it is used.
pub(crate) async fn check_labels(
    images: &ImageStore,
    request: &LayerRequest,
    layer: &mut ImageLayer,
) -> Result<(), LayerRefusal> {
    let namespace = request.namespace.as_str();
    let key = &layer.image;
    let unknown = |error: ImageStoreError| {
        let error = soci_errors::chain(&error);
        tracing::debug!(
            error,
            "cannot compare the labels with containerd's image store"
        );
        Ok(())
    };
    let stored = match images.image(namespace, key.manifest).await {
        Ok(stored) => stored,
        Err(error) => return unknown(error),
    };
    let disagree = |reason: String| {
        let reason = format!("containerd's image store: {reason}");
        Err(LayerRefusal::ForeignLabels { reason })
    };
    let Some(image) = stored else {
        return disagree(format!(
            "it has no image manifest {} in namespace {namespace}",
            key.manifest
        ));
    };
    let listed = listed(&image, request, layer)?;
    ignore_annotated_index(&listed, layer);
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
        Err(error) => unknown(error),
    }
}

/// Looks the layer up in the manifest: by its digest, and at the position that its snapshot will have
/// if the client names snapshots by chain IDs.
fn listed<'a>(
    image: &'a StoredImage,
    request: &LayerRequest,
    layer: &ImageLayer,
) -> Result<Vec<&'a Descriptor>, LayerRefusal> {
    let target = request.labels.get(TARGET);
    let target = target.and_then(|target| chain_id(target));
    let parent = request.parent.as_deref();
    let position = target.and_then(|id| ChainPosition::of(&id.to_string(), parent?));
    let below = std::iter::once(None).chain(image.chain_ids.iter().map(Some));
    let layers = image.manifest.layers.iter().zip(&image.chain_ids);
    let mut elsewhere = LayerRefusal::ForeignLabels {
        reason: format!(
            "containerd's image store: manifest {} does not have layer {} at this position",
            image.digest, layer.layer
        ),
    };
    let mut listed = Vec::new();
    for ((descriptor, chain), below) in layers.zip(below) {
        if descriptor.digest != layer.layer || target.is_some_and(|target| target != *chain) {
            continue;
        }
        match &position {
            Some(position) if position.below.as_ref() != below => {
                if position.below.is_none() {
                    elsewhere = LayerRefusal::WithoutParent;
                }
            }
            _ => listed.push(descriptor),
        }
    }
    match listed.is_empty() {
        true => Err(elsewhere),
        false => Ok(listed),
    }
}

/// Drops an explicit index that an annotation of the layer names.
fn ignore_annotated_index(listed: &[&Descriptor], layer: &mut ImageLayer) {
    let Some(explicit) = layer.image.explicit_index else {
        return;
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
}
