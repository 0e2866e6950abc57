//! From what was read of the layers of a start to its recording.

use std::time::Duration;

use soci_ztoc::{SpanId, SpanTable};

use crate::blocks::Blocks;
use crate::recording::{ProfiledLayer, RecordedSpan, Recording};

/// What was read of a layer.
#[derive(Debug, Clone)]
pub struct LayerReads {
    /// The layer.
    pub layer: ProfiledLayer,
    /// Its spans.
    pub table: SpanTable,
    /// The spans that were read, each with the time of its first read, from any moment on that is
    /// the same for all layers.
    pub spans: Vec<(u32, Duration)>,
    /// The blocks that were read.
    pub blocks: Blocks,
}

impl Recording {
    /// The recording of a start; its times are those since its first read.
    #[must_use]
    pub fn of_reads(layers: Vec<LayerReads>) -> Self {
        let times = layers.iter().flat_map(|layer| &layer.spans);
        let first = times.map(|(_, at)| *at).min().unwrap_or_default();
        let mut recording = Self::default();
        for layer in layers {
            for (span, at) in layer.spans {
                let Some(facts) = layer.table.get(SpanId(span)) else {
                    continue;
                };
                let millis = at.saturating_sub(first).as_millis();
                recording.spans.push(RecordedSpan {
                    layer: layer.layer,
                    span,
                    millis: u64::try_from(millis).unwrap_or(u64::MAX),
                    extent: Blocks::touched_by(&facts.uncompressed),
                });
            }
            recording.blocks.push((layer.layer, layer.blocks));
        }
        recording
    }
}
