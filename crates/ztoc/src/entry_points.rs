//! Places where a layer can be entered while it is inflated whole, as its zTOC names them.

use std::fmt;
use std::ops::Range;

use crate::{Checkpoint, SpanId, SpanTable};

type ReadBlob = dyn Fn(Range<u64>) -> Option<Vec<u8>> + Send + Sync;

/// The checkpoints of a gzip layer, at which parts of it are inflated before their turn.
///
/// They are advice: what is inflated from a checkpoint is used only if inflating in order comes to
/// the same bit with the same window, so that a wrong zTOC costs time and changes no output.
pub struct EntryPoints {
    spans: SpanTable,
    read: Box<ReadBlob>,
}

impl fmt::Debug for EntryPoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EntryPoints")
            .field("points", &self.points().len())
            .finish_non_exhaustive()
    }
}

impl EntryPoints {
    /// The checkpoints of a zTOC. `read` returns a range of its blob, or `None` if that cannot be read.
    #[must_use]
    pub fn new(
        spans: SpanTable,
        read: impl Fn(Range<u64>) -> Option<Vec<u8>> + Send + Sync + 'static,
    ) -> Self {
        Self {
            spans,
            read: Box::new(read),
        }
    }

    pub(crate) fn points(&self) -> &[Checkpoint] {
        self.spans.starts()
    }

    /// The output before a checkpoint.
    pub(crate) fn window(&self, index: usize) -> Option<Vec<u8>> {
        let id = SpanId(u32::try_from(index).ok()?);
        let range = self.spans.window_at(id)?;
        let length = range.end - range.start;
        (self.read)(range).filter(|window| window.len() as u64 == length)
    }
}
