//! The log lines about the outcome of a Prepare of an image layer. Their keys and values are those
//! of v0.15: other programs look for them.

use soci_layer::LayerRefusal;

use crate::error::SnapshotterError;
use crate::image_layer::ImageLayer;
use crate::metadata::Fallback;

pub(crate) fn lazy(layer: &ImageLayer) {
    tracing::info!(
        key = layer.key,
        parent = layer.parent,
        layerDigest = layer.digest(),
        "remote-snapshot-prepared" = "true",
        "layer mounted lazily"
    );
}

pub(crate) fn not_lazy(layer: &ImageLayer, refusal: &LayerRefusal) {
    tracing::warn!(
        key = layer.key,
        parent = layer.parent,
        layerDigest = layer.digest(),
        "remote-snapshot-prepared" = "false",
        reason = refusal.code(),
        error = %soci_errors::chain(refusal),
        "layer not mounted lazily"
    );
}

pub(crate) fn eager(layer: &ImageLayer, refusal: &LayerRefusal) {
    tracing::info!(
        key = layer.key,
        parent = layer.parent,
        layerDigest = layer.digest(),
        reason = %soci_errors::chain(refusal),
        "preparing snapshot with parallel pull/unpack"
    );
}

pub(crate) fn lazy_not_committed(layer: &ImageLayer, error: &SnapshotterError) {
    tracing::warn!(
        key = layer.key,
        parent = layer.parent,
        "remote-snapshot-prepared" = "false",
        error = %soci_errors::chain(error),
        "cannot commit a lazily mounted layer"
    );
}

/// The client has nothing to download, but the committed snapshot may be an unpacked one.
pub(crate) fn exists(layer: &ImageLayer, lazy: bool) {
    tracing::info!(
        key = layer.key,
        parent = layer.parent,
        layerDigest = layer.digest(),
        target = layer.target,
        "remote-snapshot-prepared" = if lazy { "true" } else { "false" },
        "layer already exists"
    );
}

pub(crate) fn unpacked(layer: &ImageLayer) {
    tracing::info!(
        key = layer.key,
        parent = layer.parent,
        layerDigest = layer.digest(),
        "local-snapshot-prepared" = "true",
        "layer unpacked"
    );
}

pub(crate) fn not_unpacked(layer: &ImageLayer, error: &(dyn std::error::Error + 'static)) {
    tracing::warn!(
        key = layer.key,
        parent = layer.parent,
        layerDigest = layer.digest(),
        "local-snapshot-prepared" = "false",
        error = %soci_errors::chain(error),
        "layer not unpacked by the snapshotter"
    );
}

pub(crate) fn deferred(layer: &ImageLayer, fallback: &Fallback) {
    tracing::warn!(
        key = layer.key,
        parent = layer.parent,
        "defer-snapshot-runtime" = "true",
        reason = fallback.code,
        error = fallback.reason,
        "layer left to the client to pull and unpack"
    );
}
