//! The log lines about what became of a Prepare of an image layer. Their keys and values are
//! v0.15's: other programs look for them.

use crate::prepare::Layer;
use soci_layer::LayerRefusal;

pub(crate) fn log_lazy(layer: &Layer) {
    tracing::info!(
        key = layer.key,
        parent = layer.parent,
        layerDigest = layer.digest(),
        "remote-snapshot-prepared" = "true",
        "the layer is mounted lazily"
    );
}

/// The client has nothing to download, but the snapshot may be one that was unpacked.
pub(crate) fn log_exists(layer: &Layer, lazy: bool) {
    tracing::info!(
        key = layer.key,
        parent = layer.parent,
        layerDigest = layer.digest(),
        target = layer.target,
        "remote-snapshot-prepared" = if lazy { "true" } else { "false" },
        "the layer is here already"
    );
}

pub(crate) fn log_refusal(layer: &Layer, refusal: &LayerRefusal) {
    tracing::warn!(
        key = layer.key,
        parent = layer.parent,
        layerDigest = layer.digest(),
        "remote-snapshot-prepared" = "false",
        reason = refusal.code(),
        error = %soci_errors::chain(refusal),
        "the layer is not mounted lazily"
    );
}

pub(crate) fn log_unpacked(layer: &Layer) {
    tracing::info!(
        key = layer.key,
        parent = layer.parent,
        layerDigest = layer.digest(),
        "local-snapshot-prepared" = "true",
        "the layer is unpacked"
    );
}

pub(crate) fn log_not_unpacked(layer: &Layer, error: &(dyn std::error::Error + 'static)) {
    tracing::warn!(
        key = layer.key,
        parent = layer.parent,
        layerDigest = layer.digest(),
        "local-snapshot-prepared" = "false",
        error = %soci_errors::chain(error),
        "the layer is not unpacked here"
    );
}
