//! What one start read.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use soci_oci::Digest;

use crate::blocks::Blocks;

/// Number of spans that are kept of a recording.
pub const MAX_SPANS: usize = 4096;
/// Number of layers that the recordings of an image may be about.
pub(crate) const MAX_LAYERS: usize = 1024;

/// A layer as a profile names it: spans are numbers in the table of one zTOC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProfiledLayer {
    /// The layer.
    pub layer: Digest,
    /// The zTOC whose spans are meant.
    pub ztoc: Digest,
}

/// A span of a layer, and when a start first read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedSpan {
    /// The layer.
    pub layer: ProfiledLayer,
    /// The number of the span.
    pub span: u32,
    /// Time since the first read of the start, in milliseconds.
    pub millis: u64,
    /// The blocks of the tar that the span touches, by which it is found in another zTOC.
    pub extent: Range<u32>,
}

/// What one start read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recording {
    /// The spans.
    pub spans: Vec<RecordedSpan>,
    /// The blocks of each layer; none for layers of which they are not known.
    pub blocks: Vec<(ProfiledLayer, Blocks)>,
}

/// Drops what is repeated or too much.
pub(crate) fn tidy(recording: &mut Recording) {
    let mut seen = HashSet::new();
    recording
        .spans
        .retain(|span| seen.len() < MAX_SPANS && seen.insert((span.layer, span.span)));
    let mut layers = HashMap::new();
    for span in &recording.spans {
        layers.entry(span.layer).or_insert(false);
    }
    recording.blocks.retain(|(layer, blocks)| {
        let known = layers.get_mut(layer);
        !blocks.is_empty() && known.is_some_and(|used| !std::mem::replace(used, true))
    });
}
