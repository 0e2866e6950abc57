//! Progress reports of a conversion.

use soci_oci::{Descriptor, Digest};

/// What is being done to a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Its zTOC is being built (and, for a local destination, its bytes copied).
    Index,
    /// Its bytes are being copied or uploaded.
    Copy,
}

/// What came of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LayerOutcome {
    /// It has a zTOC.
    Indexed {
        /// The zTOC blob.
        ztoc: Digest,
        /// The source had it already.
        reused: bool,
    },
    /// It is smaller than the requested minimum.
    TooSmall {
        /// The limit in bytes.
        min_layer_size: u64,
    },
    /// It is packed in a way that zTOCs cannot describe.
    Unsupported {
        /// Why.
        reason: String,
    },
}

impl LayerOutcome {
    /// The line that says so; other programs read the first form.
    #[must_use]
    pub fn line(&self, layer: &Descriptor) -> String {
        let Descriptor {
            digest,
            media_type,
            size,
            ..
        } = layer;
        match self {
            Self::Indexed { ztoc, reused } => {
                let already = if *reused { " (already exists)" } else { "" };
                format!("layer {digest} -> ztoc {ztoc}{already}")
            }
            Self::TooSmall { min_layer_size } => format!(
                "ztoc skipped - layer {digest} ({media_type}) size {size} is less than \
                 min-layer-size {min_layer_size}"
            ),
            Self::Unsupported { reason } => {
                format!("ztoc skipped - layer {digest} ({media_type}) {reason}")
            }
        }
    }
}

/// Watches a conversion. Called from many threads.
pub trait Progress: Send + Sync + 'static {
    /// Work on a layer begins, or enters another step.
    fn begin(&self, layer: &Descriptor, step: Step);
    /// So many more bytes of the layer are done in this step.
    fn advance(&self, layer: Digest, bytes: u64);
    /// The layer is done. Called in the order of the image's layers.
    fn layer(&self, layer: &Descriptor, outcome: &LayerOutcome);
    /// A prefetch artifact was made for a layer.
    fn prefetch(&self, layer: Digest, artifact: Digest);
    /// The last step begins, which makes the result visible at the destination.
    fn committing(&self) {}
    /// A warning for the user. The work continues.
    fn warn(&self, message: &str);
}

/// Discards all reports.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _: &Descriptor, _: Step) {}
    fn advance(&self, _: Digest, _: u64) {}
    fn layer(&self, _: &Descriptor, _: &LayerOutcome) {}
    fn prefetch(&self, _: Digest, _: Digest) {}
    fn warn(&self, _: &str) {}
}
