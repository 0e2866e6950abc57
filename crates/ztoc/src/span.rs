//! Spans, the parts of a layer that are fetched, verified and inflated on their own.

use std::ops::Range;
use std::sync::Arc;

use soci_oci::Digest;

use crate::checkpoint::{Checkpoint, Checkpoints, GzipCheckpoints, WINDOW_SIZE};
use crate::extract::{inflate_span, inflate_to_end};
use crate::{Compression, SpanError, SpanId, Ztoc};

/// Position of a span, and the digest that its bytes must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Its bytes in the layer blob, including the byte shared with its neighbour before where
    /// `bits` is not 0.
    pub compressed: Range<u64>,
    /// Its bytes in the uncompressed tar.
    pub uncompressed: Range<u64>,
    /// How many high bits of its first byte belong to it; 0: all of it.
    pub bits: u8,
    /// The sha256 of its compressed bytes.
    pub digest: Digest,
}

/// What is needed to fetch, check and inflate spans. Small, and cheap to clone: the windows stay in
/// the zTOC blob.
#[derive(Debug, Clone)]
pub struct SpanTable {
    table: Arc<Spans>,
}

#[derive(Debug)]
struct Spans {
    compression: Compression,
    compressed_size: u64,
    uncompressed_size: u64,
    /// Where each span starts. As many as `digests`.
    starts: Vec<Checkpoint>,
    digests: Vec<Digest>,
    /// Where in the zTOC blob the checkpoints are.
    checkpoints_at: u64,
    first_implied: bool,
}

impl SpanTable {
    pub(crate) fn of(ztoc: &Ztoc, checkpoints_at: u64) -> Self {
        let info = &ztoc.compression;
        let (starts, first_implied) = match &info.checkpoints {
            Checkpoints::Gzip(gzip) => (gzip.points.clone(), gzip.first_implied()),
            Checkpoints::Tar(tar) => {
                let starts = (0..tar.spans()).map(|span| {
                    let start = span * tar.span_size;
                    Checkpoint {
                        input: start,
                        output: start,
                        bits: 0,
                    }
                });
                (starts.collect(), false)
            }
        };
        Self {
            table: Arc::new(Spans {
                compression: info.algorithm,
                compressed_size: ztoc.compressed_archive_size,
                uncompressed_size: ztoc.uncompressed_archive_size,
                starts,
                digests: info.span_digests.clone(),
                checkpoints_at,
                first_implied,
            }),
        }
    }

    pub(crate) fn starts(&self) -> &[Checkpoint] {
        &self.table.starts
    }

    /// How many spans there are.
    #[must_use]
    pub fn len(&self) -> u32 {
        u32::try_from(self.table.starts.len()).unwrap_or(u32::MAX)
    }

    /// Returns whether there is no span, as for a plain tar layer of no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.starts.is_empty()
    }

    /// A span.
    ///
    /// # Panics
    /// When `id` is not below [`SpanTable::len`]; [`SpanTable::get`] does not.
    #[must_use]
    #[expect(
        clippy::panic,
        reason = "like indexing; ids from outside go through get"
    )]
    pub fn span(&self, id: SpanId) -> Span {
        self.get(id)
            .unwrap_or_else(|| panic!("span {id} of {}", self.len()))
    }

    /// A span, if there is one of that number.
    #[must_use]
    pub fn get(&self, id: SpanId) -> Option<Span> {
        let inner = &*self.table;
        let start = inner.starts.get(id.index())?;
        let next = inner.starts.get(id.index() + 1);
        let (end_in, end_out) = next
            .map_or((inner.compressed_size, inner.uncompressed_size), |next| {
                (next.input, next.output)
            });
        let shared = u64::from(start.bits != 0);
        // A stream may continue after the tar's end, with checkpoints there that have no reader.
        let most = inner.uncompressed_size;
        Some(Span {
            compressed: start.input.saturating_sub(shared)..end_in,
            uncompressed: start.output.min(most)..end_out.min(most),
            bits: start.bits,
            digest: *inner.digests.get(id.index())?,
        })
    }

    /// The length of the layer blob in bytes.
    #[must_use]
    pub fn compressed_size(&self) -> u64 {
        self.table.compressed_size
    }

    /// The length of the tar in bytes, which is where the last span ends.
    #[must_use]
    pub fn uncompressed_size(&self) -> u64 {
        self.table.uncompressed_size
    }

    /// How the layer is compressed.
    #[must_use]
    pub fn compression(&self) -> Compression {
        self.table.compression
    }

    /// The span that holds an uncompressed offset; `None` past the end.
    #[must_use]
    pub fn at_uncompressed(&self, offset: u64) -> Option<SpanId> {
        if offset >= self.table.uncompressed_size {
            return None;
        }
        let behind = self
            .table
            .starts
            .partition_point(|start| start.output <= offset);
        u32::try_from(behind.checked_sub(1)?).ok().map(SpanId)
    }

    /// The numbers of all spans that hold a part of a range of the tar; empty for an empty range.
    #[must_use]
    pub fn covering(&self, uncompressed: Range<u64>) -> Range<u32> {
        let end = uncompressed.end.min(self.table.uncompressed_size);
        if uncompressed.start >= end {
            return 0..0;
        }
        match (
            self.at_uncompressed(uncompressed.start),
            self.at_uncompressed(end - 1),
        ) {
            (Some(first), Some(last)) => first.0..last.0.saturating_add(1),
            _ => 0..0,
        }
    }

    /// Position of the span's 32 KiB window in the zTOC blob. `None`: plain tar, or the implied first
    /// checkpoint of old zTOCs, whose window is all zero; `extract` takes an empty window then.
    #[must_use]
    pub fn window_at(&self, id: SpanId) -> Option<Range<u64>> {
        let inner = &*self.table;
        if inner.compression != Compression::Gzip || id.index() >= inner.starts.len() {
            return None;
        }
        let offset = GzipCheckpoints::window_offset(id.index(), inner.first_implied)?;
        let start = inner.checkpoints_at.checked_add(offset as u64)?;
        Some(start..start.checked_add(WINDOW_SIZE as u64)?)
    }

    fn known(&self, id: SpanId) -> Result<Span, SpanError> {
        self.get(id).ok_or(SpanError::NoSuchSpan {
            id,
            count: self.len(),
        })
    }

    /// Checks a span's compressed bytes against its digest.
    ///
    /// # Errors
    /// [`SpanError::Length`] or [`SpanError::Digest`] when they are not the span's bytes.
    pub fn verify(&self, id: SpanId, compressed: &[u8]) -> Result<(), SpanError> {
        let span = self.known(id)?;
        let expected = span.compressed.end.saturating_sub(span.compressed.start);
        if compressed.len() as u64 != expected {
            return Err(SpanError::Length {
                id,
                expected,
                actual: compressed.len() as u64,
            });
        }
        let actual = Digest::of(compressed);
        if actual != span.digest {
            return Err(SpanError::Digest {
                id,
                expected: span.digest,
                actual,
            });
        }
        Ok(())
    }

    /// Checks a span's compressed bytes, exactly `span.compressed`, then inflates them: afterwards
    /// `out` holds exactly `span.uncompressed`. On an error `out` is empty.
    ///
    /// The window is trusted: it is part of the zTOC, whose own digest was checked when it was
    /// fetched. It is not looked at where [`SpanTable::window_at`] is `None`.
    ///
    /// # Errors
    /// [`SpanError`] when the bytes are not the span's or the zTOC is wrong about it.
    pub fn extract(
        &self,
        id: SpanId,
        compressed: &[u8],
        window: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), SpanError> {
        out.clear();
        self.verify(id, compressed)?;
        let span = self.known(id)?;
        let expected = span
            .uncompressed
            .end
            .saturating_sub(span.uncompressed.start);
        let wrong = |reason| SpanError::Inflate {
            id,
            expected,
            reason,
        };
        let len = usize::try_from(expected).map_err(|_| wrong("it does not fit into memory"))?;
        if self.table.compression == Compression::Uncompressed {
            out.extend_from_slice(
                compressed
                    .get(..len)
                    .ok_or_else(|| wrong("it is too short"))?,
            );
            return Ok(());
        }
        let window = self.checked_window(id, window)?;
        // Whatever follows the tar's end is cut off; elsewhere a span must end where the next starts.
        let cut = self
            .table
            .starts
            .get(id.index() + 1)
            .is_none_or(|next| next.output > self.table.uncompressed_size);
        inflate_span(span.bits, compressed, window, len, cut, out).map_err(|reason| {
            out.clear();
            wrong(reason)
        })
    }

    /// The spans that hold what follows the tar's end in the layer's stream, first the one in which
    /// the tar ends. Readers need none of it, so that the layer store does not keep it; the diff ID
    /// covers it.
    #[must_use]
    pub fn behind_the_tar(&self) -> Range<u32> {
        let most = self.table.uncompressed_size;
        let starts = &self.table.starts;
        let first = starts.partition_point(|start| start.output < most);
        let first = u32::try_from(first.saturating_sub(1)).unwrap_or(u32::MAX);
        first..self.len()
    }

    /// Checks a span's compressed bytes, then inflates what of it follows the tar's end; at most `most`
    /// bytes of it. `out` holds that afterwards; on an error it is empty.
    ///
    /// # Errors
    /// As [`SpanTable::extract`], and if there are more than `most` bytes.
    pub fn extract_behind_the_tar(
        &self,
        id: SpanId,
        compressed: &[u8],
        window: &[u8],
        most: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), SpanError> {
        out.clear();
        self.verify(id, compressed)?;
        let span = self.known(id)?;
        let in_tar = span
            .uncompressed
            .end
            .saturating_sub(span.uncompressed.start);
        let wrong = |reason| SpanError::Inflate {
            id,
            expected: in_tar,
            reason,
        };
        let in_tar = usize::try_from(in_tar).map_err(|_| wrong("it does not fit into memory"))?;
        let limit = in_tar.saturating_add(most);
        if self.table.compression == Compression::Uncompressed {
            let tail = compressed.get(in_tar..).unwrap_or_default();
            if tail.len() > most {
                return Err(wrong("too much follows the end of the tar"));
            }
            out.extend_from_slice(tail);
            return Ok(());
        }
        let window = self.checked_window(id, window)?;
        let inflated = inflate_to_end(span.bits, compressed, window, limit, out);
        let reason = match inflated {
            Ok(()) if out.len() < in_tar => "it is too short",
            Ok(()) => {
                out.drain(..in_tar);
                return Ok(());
            }
            Err(reason) => reason,
        };
        out.clear();
        Err(wrong(reason))
    }

    /// The window with which a span is inflated.
    fn checked_window<'w>(
        &self,
        id: SpanId,
        window: &'w [u8],
    ) -> Result<Option<&'w [u8]>, SpanError> {
        match self.window_at(id) {
            None => Ok(None),
            Some(_) if window.len() == WINDOW_SIZE => Ok(Some(window)),
            Some(_) => Err(SpanError::Window {
                id,
                expected: WINDOW_SIZE as u64,
                actual: window.len() as u64,
            }),
        }
    }
}
