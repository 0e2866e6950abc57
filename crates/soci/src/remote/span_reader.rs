//! Reading ranges of a layer's tar: spans in ranged requests, each checked before it is used.

use std::ops::Range;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use soci_registry::{BlobSource, Deadline};
use soci_ztoc::{SpanId, SpanTable};

/// Compressed bytes of one request, unless a span alone is larger.
const REQUEST: u64 = 8 << 20;
/// Requests at a time.
const AHEAD: usize = 3;

/// Reads one layer.
#[derive(Clone)]
pub(crate) struct SpanReader {
    spans: SpanTable,
    /// The zTOC, for the windows in it.
    blob: Bytes,
    source: Arc<dyn BlobSource>,
}

impl SpanReader {
    /// Reads the layer that `source` gives through its zTOC.
    pub(crate) fn new(spans: SpanTable, blob: Bytes, source: Arc<dyn BlobSource>) -> Self {
        Self {
            spans,
            blob,
            source,
        }
    }

    /// The layer's spans.
    pub(crate) fn spans(&self) -> &SpanTable {
        &self.spans
    }

    /// Passes the bytes of a range of the tar, in order, to `take`.
    pub(crate) async fn read(
        &self,
        range: Range<u64>,
        mut take: impl FnMut(&[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let groups = self.groups(self.spans.covering(range.clone()));
        let mut pieces = futures::stream::iter(groups.into_iter().map(|group| {
            let (this, range) = (self.clone(), range.clone());
            async move { this.group(group, range).await }
        }))
        .buffered(AHEAD);
        while let Some(piece) = pieces.try_next().await? {
            take(&piece)?;
        }
        Ok(())
    }

    /// The whole range in memory.
    pub(crate) async fn bytes(&self, range: Range<u64>) -> anyhow::Result<Vec<u8>> {
        let mut all = Vec::new();
        self.read(range, |piece| {
            all.extend_from_slice(piece);
            Ok(())
        })
        .await?;
        Ok(all)
    }

    /// Runs of spans for one request each.
    fn groups(&self, spans: Range<u32>) -> Vec<Range<u32>> {
        let mut groups: Vec<Range<u32>> = Vec::new();
        let mut size = 0_u64;
        for id in spans {
            let Some(span) = self.spans.get(SpanId(id)) else {
                break;
            };
            let length = span.compressed.end.saturating_sub(span.compressed.start);
            size = size.saturating_add(length);
            match groups.last_mut() {
                Some(last) if size <= REQUEST => last.end = id.saturating_add(1),
                _ => {
                    groups.push(id..id.saturating_add(1));
                    size = length;
                }
            }
        }
        groups
    }

    /// The part of `range` that these spans hold.
    async fn group(&self, group: Range<u32>, range: Range<u64>) -> anyhow::Result<Vec<u8>> {
        let get = |id| self.spans.get(SpanId(id)).context("the zTOC lacks a span");
        let (first, last) = (get(group.start)?, get(group.end.saturating_sub(1))?);
        let start = first.compressed.start;
        let compressed = self
            .source
            .read_range(start..last.compressed.end.max(start), Deadline::far())
            .await?;
        let this = self.clone();
        soci_task::blocking(move || this.inflate(group, start, &compressed, &range)).await
    }

    fn inflate(
        &self,
        group: Range<u32>,
        start: u64,
        compressed: &[u8],
        range: &Range<u64>,
    ) -> anyhow::Result<Vec<u8>> {
        let mut all = Vec::new();
        let mut plain = Vec::new();
        for id in group.map(SpanId) {
            let span = self.spans.get(id).context("the zTOC lacks a span")?;
            let bytes = slice(
                compressed,
                span.compressed.start.saturating_sub(start)
                    ..span.compressed.end.saturating_sub(start),
            )
            .context("the layer ended early")?;
            let window = match self.spans.window_at(id) {
                Some(at) => slice(&self.blob, at).context("the zTOC ended early")?,
                None => &[],
            };
            self.spans
                .extract(id, bytes, window, &mut plain)
                .with_context(|| self.source.describe())?;
            let from = range.start.max(span.uncompressed.start);
            let to = range.end.min(span.uncompressed.end);
            let base = span.uncompressed.start;
            let wanted = from.saturating_sub(base)..to.saturating_sub(base);
            all.extend_from_slice(slice(&plain, wanted).unwrap_or_default());
        }
        Ok(all)
    }
}

fn slice(bytes: &[u8], range: Range<u64>) -> Option<&[u8]> {
    bytes.get(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?)
}
