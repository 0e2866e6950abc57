//! What the recordings of an image have in common.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use soci_oci::Digest;
use soci_ztoc::SpanTable;

use crate::blocks::{BLOCK, Blocks};
use crate::recording::{ProfiledLayer, Recording};

/// A span of the merged order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MergedSpan {
    /// The layer.
    pub layer: ProfiledLayer,
    /// The number of the span.
    pub span: u32,
    /// The blocks that the span touches.
    pub extent: Range<u32>,
}

/// The spans that at least half of the recordings have, in the order of their mean time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Merged {
    spans: Vec<MergedSpan>,
    blocks: HashMap<ProfiledLayer, Blocks>,
}

impl Merged {
    pub(crate) fn of(recordings: &[Recording]) -> Self {
        let mut times: HashMap<(ProfiledLayer, u32), (u64, u64, Range<u32>)> = HashMap::new();
        let mut sets: HashMap<ProfiledLayer, Vec<&Blocks>> = HashMap::new();
        for recording in recordings {
            for span in &recording.spans {
                let first = || (0, 0, span.extent.clone());
                let (count, sum, _) = times.entry((span.layer, span.span)).or_insert_with(first);
                *count += 1;
                *sum = sum.saturating_add(span.millis);
            }
            for (layer, blocks) in &recording.blocks {
                sets.entry(*layer).or_default().push(blocks);
            }
        }
        let all = recordings.len() as u64;
        let mut spans: Vec<_> = times
            .into_iter()
            .filter(|(_, (count, ..))| count.saturating_mul(2) >= all)
            .map(|((layer, span), (count, sum, extent))| {
                let order = (sum / count.max(1), layer, span);
                let span = MergedSpan {
                    layer,
                    span,
                    extent,
                };
                (order, span)
            })
            .collect();
        spans.sort_unstable_by_key(|(order, _)| *order);
        let blocks = sets.into_iter();
        Self {
            spans: spans.into_iter().map(|(_, span)| span).collect(),
            blocks: blocks
                .map(|(layer, sets)| (layer, Blocks::majority(&sets)))
                .collect(),
        }
    }

    /// The spans, in the order of their first use.
    #[must_use]
    pub fn spans(&self) -> &[MergedSpan] {
        &self.spans
    }

    /// The blocks of a layer that at least half of the starts read.
    #[must_use]
    pub fn blocks(&self, layer: &ProfiledLayer) -> Option<&Blocks> {
        self.blocks.get(layer)
    }

    /// The spans of a layer in the table of one of its zTOCs, with their place in the order. Spans of
    /// another zTOC of the same layer are found by what they cover.
    #[must_use]
    pub fn in_table(&self, layer: &Digest, ztoc: &Digest, table: &SpanTable) -> BTreeMap<u32, u64> {
        let of_layer = self.spans.iter().enumerate();
        let of_layer = of_layer.filter(|(_, span)| span.layer.layer == *layer);
        let of_layer: Vec<_> = of_layer.collect();
        // One zTOC alone: two recordings through different ones name everything twice.
        let exact = of_layer.iter().any(|(_, span)| span.layer.ztoc == *ztoc);
        let mut places = BTreeMap::new();
        for (place, span) in of_layer {
            if exact && span.layer.ztoc != *ztoc {
                continue;
            }
            let place = place as u64;
            let mut add = |span: u32| {
                let known = places.entry(span).or_insert(place);
                *known = place.min(*known);
            };
            if exact {
                if span.span < table.len() {
                    add(span.span);
                }
                continue;
            }
            let size = table.uncompressed_size();
            for run in self.read_within(span) {
                let start = u64::from(run.start).saturating_mul(BLOCK);
                let end = u64::from(run.end).saturating_mul(BLOCK).min(size);
                if start < end {
                    table.covering(start..end).for_each(&mut add);
                }
            }
        }
        places
    }

    /// The blocks of a span that were read, or all of them where that is not known.
    fn read_within(&self, span: &MergedSpan) -> Vec<Range<u32>> {
        match self.blocks.get(&span.layer) {
            Some(blocks) if !blocks.is_empty() => blocks.within(span.extent.clone()).collect(),
            _ => vec![span.extent.clone()],
        }
    }
}
