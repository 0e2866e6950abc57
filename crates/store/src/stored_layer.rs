//! One layer in the store: the sparse file of its uncompressed tar, the record of what is in it, and
//! its zTOC.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use soci_oci::Digest;
use soci_ztoc::{LayerIndex, Span, SpanId, SpanTable, Ztoc, ZtocError};

use crate::clock::recent;
use crate::disk_fault::fault;
use crate::page_cache;
use crate::span_states::{SpanStates, State};
use crate::spans_file::SpansFile;
use crate::standing::Standing;
use crate::store_state::StoreState;
use crate::{LayerKey, StoreError};

/// How much is read at once when a checksum is compared.
const CHECK_CHUNK: usize = 256 << 10;

/// The file with the result of verifying the layer.
const VERDICT: &str = "verdict";

/// The result of a read.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum ReadOutcome {
    /// The whole buffer is filled.
    Filled,
    /// From the first to the last span that is needed and missing; some between may be stored. The
    /// buffer's content is undefined.
    Missing(Range<u32>),
}

/// One layer in the store. It keeps three descriptors open.
#[derive(Debug)]
pub struct StoredLayer {
    pub(crate) me: Weak<Self>,
    pub(crate) key: LayerKey,
    pub(crate) dir: PathBuf,
    pub(crate) spans: SpanTable,
    pub(crate) states: SpanStates,
    pub(crate) data: File,
    pub(crate) ztoc: File,
    /// crc32c of each span's window: a span's digest covers its compressed bytes only, so a window
    /// that rots on disk would give wrong bytes.
    pub(crate) window_sums: Box<[u32]>,
    pub(crate) record: Mutex<SpansFile>,
    /// Spans that are written and not durable.
    pub(crate) dirty: Mutex<Vec<u32>>,
    /// One sync at a time.
    pub(crate) syncing: Mutex<()>,
    /// One checksum is compared at a time, so that many first readers of a span read it once.
    pub(crate) checking: Mutex<()>,
    pub(crate) fetched: AtomicU64,
    pub(crate) removed: AtomicBool,
    pub(crate) standing: Standing,
    pub(crate) shared: Arc<StoreState>,
}

impl StoredLayer {
    /// Returns its name in the store.
    #[must_use]
    pub const fn key(&self) -> LayerKey {
        self.key
    }

    /// The digest of the compressed layer.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.key.layer
    }

    /// The digest of its zTOC.
    #[must_use]
    pub const fn ztoc_digest(&self) -> Digest {
        self.key.ztoc
    }

    /// Its spans.
    #[must_use]
    pub const fn spans(&self) -> &SpanTable {
        &self.spans
    }

    /// Parses the zTOC from disk.
    ///
    /// # Errors
    /// It cannot be read or is not what it was.
    pub fn ztoc(&self) -> Result<Ztoc, StoreError> {
        Ztoc::parse(&self.ztoc_blob()?).map_err(|source| self.bad_ztoc(source))
    }

    /// Reads the zTOC from disk, without a copy of its entries and windows.
    ///
    /// # Errors
    /// It cannot be read or is not what it was.
    pub fn index(&self) -> Result<LayerIndex, StoreError> {
        Ztoc::parse_index(self.ztoc_blob()?).map_err(|source| self.bad_ztoc(source))
    }

    const fn bad_ztoc(&self, source: ZtocError) -> StoreError {
        let digest = self.key.ztoc;
        StoreError::Ztoc { digest, source }
    }

    fn ztoc_blob(&self) -> Result<Vec<u8>, StoreError> {
        let path = self.dir.join("ztoc");
        let failed = |e| StoreError::io("read", &path, e);
        let len = self.ztoc.metadata().map_err(failed)?.len();
        let mut blob = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
        self.ztoc.read_exact_at(&mut blob, 0).map_err(failed)?;
        page_cache::drop_all(&self.ztoc);
        let (expected, actual) = (self.key.ztoc, Digest::of(&blob));
        if actual != expected {
            let what = format!("zTOC {}", path.display());
            return Err(StoreError::DigestMismatch {
                what,
                expected,
                actual,
            });
        }
        Ok(blob)
    }

    /// Returns what [`StoredLayer::set_verdict`] recorded.
    #[must_use]
    pub fn verdict(&self) -> Option<String> {
        std::fs::read_to_string(self.dir.join(VERDICT)).ok()
    }

    /// Records the result of verifying the layer. It stays as long as the layer is stored: layer and
    /// zTOC are named by their digests, so that the result never changes.
    ///
    /// # Errors
    /// The disk.
    pub fn set_verdict(&self, verdict: &str) -> Result<(), StoreError> {
        crate::atomic_file::write_file(&self.dir.join(VERDICT), verdict.as_bytes())
    }

    /// Returns whether the span is stored.
    #[must_use]
    pub fn has(&self, id: SpanId) -> bool {
        self.states.state(id.0).is_stored()
    }

    /// The runs of missing spans, ascending.
    #[must_use]
    pub fn missing(&self) -> Vec<Range<u32>> {
        let mut runs: Vec<Range<u32>> = Vec::new();
        for id in (0..self.spans.len()).filter(|id| !self.has(SpanId(*id))) {
            match runs.last_mut() {
                Some(run) if run.end == id => run.end += 1,
                _ => runs.push(id..id + 1),
            }
        }
        runs
    }

    /// Returns the first span that is not stored.
    #[must_use]
    pub fn first_missing(&self) -> Option<SpanId> {
        let mut spans = (0..self.spans.len()).map(SpanId);
        spans.find(|id| !self.has(*id))
    }

    /// Returns the number of stored spans.
    #[must_use]
    pub fn stored_spans(&self) -> u64 {
        let here = (0..self.spans.len()).filter(|id| self.has(SpanId(*id)));
        here.count() as u64
    }

    /// Returns whether all spans are stored.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.first_missing().is_none()
    }

    /// The window that inflating the span needs; empty where none is needed.
    ///
    /// # Errors
    /// It cannot be read or is not what it was.
    pub fn window(&self, id: SpanId) -> Result<Vec<u8>, StoreError> {
        let Some(range) = self.spans.window_at(id) else {
            return Ok(Vec::new());
        };
        let failed = |e| StoreError::io("read", self.dir.join("ztoc"), e);
        let len = range.end.saturating_sub(range.start);
        let mut window = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
        self.ztoc
            .read_exact_at(&mut window, range.start)
            .map_err(failed)?;
        page_cache::drop_range(&self.ztoc, range);
        if self.window_sums.get(id.0 as usize) != Some(&crc32c::crc32c(&window)) {
            let reason = "it has changed on disk; pull the image again";
            return Err(failed(io::Error::new(io::ErrorKind::InvalidData, reason)));
        }
        Ok(window)
    }

    /// What decides whether its spans may be evicted.
    #[must_use]
    pub const fn standing(&self) -> &Standing {
        &self.standing
    }

    /// Stores a span's uncompressed bytes, which a reader waits for. It is readable at once, and
    /// durable after [`StoredLayer::sync`] or a moment later. A stored span, or one that is being
    /// removed to free space, is left alone.
    ///
    /// Other spans are evicted to stay within the budget. What a running container reads is stored even if
    /// they cannot: it is served from the disk, not fetched again for each read.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`], [`StoreError::OverLimit`], or the file system refused; then the span is
    /// missing.
    pub fn write_span(&self, id: SpanId, data: &[u8]) -> Result<(), StoreError> {
        self.write(id, data, true)
    }

    /// As [`StoredLayer::write_span`], for a span that no reader waits for: it never exceeds the
    /// budget, and counts as old until it is read.
    ///
    /// # Errors
    /// As [`StoredLayer::write_span`].
    pub fn write_ahead(&self, id: SpanId, data: &[u8]) -> Result<(), StoreError> {
        self.write(id, data, false)
    }

    fn write(&self, id: SpanId, data: &[u8], for_reader: bool) -> Result<(), StoreError> {
        let span = self.known(id)?;
        let len = data.len() as u64;
        if len != length(&span) {
            return Err(self.span_error(id, "bytes of another length than it has were given"));
        }
        if !self.states.change(id.0, State::Missing, State::Busy) {
            return Ok(());
        }
        if let Err(error) = self.write_data(&span, data, for_reader) {
            self.states.change(id.0, State::Busy, State::Missing);
            return Err(error);
        }
        let used = self.shared.tick();
        let used = match for_reader {
            true => used,
            false => used.wrapping_sub(recent()),
        };
        self.states.set_sum(id.0, crc32c::crc32c(data), used);
        self.fetched.fetch_add(self.weight(id), Ordering::Relaxed);
        self.states.change(id.0, State::Busy, State::Fresh);
        // After the state: a sync that finds it stored takes it for written.
        self.shared.unsynced.fetch_add(len, Ordering::Relaxed);
        self.dirty.lock().push(id.0);
        if let Some(me) = self
            .me
            .upgrade()
            .filter(|me| !me.removed.load(Ordering::Acquire))
        {
            self.shared.written(me, len);
        }
        Ok(())
    }

    /// Frees space for a span and writes its bytes. After a failure it counts as not written.
    fn write_data(&self, span: &Span, data: &[u8], for_reader: bool) -> Result<(), StoreError> {
        let len = data.len() as u64;
        let path = || self.dir.join("data");
        if !self.shared.take_disk(len) {
            let action =
                "store a span above the reserve, which layer_store.min_free_percent sets, in";
            return Err(StoreError::NoSpace {
                action,
                path: path(),
            });
        }
        if !self
            .shared
            .take_room(len, for_reader && self.standing.is_in_use())
        {
            return Err(StoreError::OverLimit { path: path() });
        }
        let write = || {
            fault("store-write-data")?;
            self.data.write_all_at(data, span.uncompressed.start)
        };
        let mut written = write();
        if let Err(error) = &written
            && error.kind() == io::ErrorKind::StorageFull
            && self.shared.reclaim_now(len) > 0
        {
            // Something else fills the disk, and there is no reserve.
            written = write();
        }
        written.map_err(|error| {
            self.shared.give_room(len);
            StoreError::io("write", path(), error)
        })
    }

    /// Reads uncompressed bytes if all of them are stored. A span whose bytes turn out to be damaged is
    /// missing again.
    ///
    /// # Errors
    /// The range is outside of the layer.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<ReadOutcome, StoreError> {
        let len = buf.len() as u64;
        let size = self.spans.uncompressed_size();
        let end =
            offset
                .checked_add(len)
                .filter(|end| *end <= size)
                .ok_or(StoreError::OutOfRange {
                    layer: self.key.layer,
                    offset,
                    len,
                    size,
                })?;
        let needed = self.spans.covering(offset..end);
        let mut at = offset;
        let mut rest = buf;
        for id in needed.clone() {
            let part_end = self.known(SpanId(id))?.uncompressed.end.min(end);
            let part_len = usize::try_from(part_end.saturating_sub(at)).unwrap_or(usize::MAX);
            let Some((part, after)) = rest.split_at_mut_checked(part_len) else {
                return Err(self.span_error(SpanId(id), "it does not lie where its neighbours say"));
            };
            if !self.read_part(SpanId(id), at, part) {
                return Ok(ReadOutcome::Missing(self.missing_of(id..needed.end)));
            }
            (at, rest) = (part_end, after);
        }
        Ok(ReadOutcome::Filled)
    }

    /// Reads a part of one span; `false`: it is missing.
    fn read_part(&self, id: SpanId, at: u64, part: &mut [u8]) -> bool {
        let Some(pin) = self.states.pin(id.0, self.shared.now()) else {
            return false;
        };
        if pin.state == State::Unchecked && !self.check(id) {
            return false;
        }
        if let Err(error) = self.data.read_exact_at(part, at) {
            self.lose(id, &error.to_string());
            return false;
        }
        // Pages that are not durable yet are the flusher's: dropping would only start their write-out.
        if pin.state != State::Fresh {
            page_cache::drop_range(&self.data, at..at.saturating_add(part.len() as u64));
        }
        true
    }

    /// Compares the checksum of a span that an earlier process stored.
    fn check(&self, id: SpanId) -> bool {
        let _one = self.checking.lock();
        match self.states.state(id.0) {
            State::Unchecked => {}
            state => return state.is_stored(),
        }
        match self.known(id).and_then(|span| self.sum_on_disk(&span)) {
            Ok(sum) if sum == self.states.sum(id.0) => {
                self.states.change(id.0, State::Unchecked, State::Durable);
                return true;
            }
            Ok(_) => self.lose(id, "its checksum is wrong"),
            Err(error) => self.lose(id, &error.to_string()),
        }
        false
    }

    fn sum_on_disk(&self, span: &Span) -> Result<u32, StoreError> {
        let mut sum = 0;
        let mut chunk = vec![0; CHECK_CHUNK];
        let mut at = span.uncompressed.start;
        while at < span.uncompressed.end {
            let left = usize::try_from(span.uncompressed.end - at).unwrap_or(usize::MAX);
            let part = chunk.get_mut(..left.min(CHECK_CHUNK)).unwrap_or_default();
            self.data
                .read_exact_at(part, at)
                .map_err(|e| StoreError::io("read", self.dir.join("data"), e))?;
            sum = crc32c::crc32c_append(sum, part);
            at += part.len() as u64;
        }
        Ok(sum)
    }

    /// A span on disk is damaged: from now on it is missing.
    fn lose(&self, id: SpanId, reason: &str) {
        let state = self.states.state(id.0);
        if !state.is_stored() || !self.states.change(id.0, state, State::Busy) {
            return;
        }
        tracing::warn!(
            layer = %self.key.layer,
            span = id.0,
            reason,
            "a stored span is damaged; it is fetched again"
        );
        self.uncount(id);
        if let Err(error) = self.record.lock().clear(&[id.0]) {
            // Its checksum is compared again after the next start.
            tracing::warn!(layer = %self.key.layer, error = %error, "a damaged span stays on record");
        }
        self.states.change(id.0, State::Busy, State::Missing);
    }

    pub(crate) fn uncount(&self, id: SpanId) {
        self.fetched.fetch_sub(self.weight(id), Ordering::Relaxed);
        if let Some(span) = self.spans.get(id) {
            self.shared.give_room(length(&span));
        }
    }

    /// How many bytes of the blob a span stands for. Neighbours may share a byte: it counts once.
    pub(crate) fn weight(&self, id: SpanId) -> u64 {
        let end = |id| self.spans.get(id).map_or(0, |span| span.compressed.end);
        let before = id.0.checked_sub(1).map_or(0, |before| end(SpanId(before)));
        end(id).saturating_sub(before)
    }

    /// The length of the compressed layer in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.spans.compressed_size()
    }

    /// Number of them that the stored spans stand for.
    #[must_use]
    pub fn fetched_bytes(&self) -> u64 {
        self.fetched.load(Ordering::Relaxed)
    }

    /// How many uncompressed bytes can be stored before something must be evicted, less an eighth of
    /// the budget, which is left for readers, and before the disk has less than one and a half times
    /// the reserve. Without both, all there are.
    #[must_use]
    pub fn spare_room(&self) -> u64 {
        let room = self.shared.disk.room_for_background();
        self.room_in_budget().min(room)
    }

    /// As [`StoredLayer::spare_room`], for what a container is expected to read in a moment: up to the
    /// reserve of the disk itself.
    #[must_use]
    pub fn room_for_start(&self) -> u64 {
        self.room_in_budget().min(self.shared.disk.room())
    }

    fn room_in_budget(&self) -> u64 {
        self.shared.budget().map_or(u64::MAX, |budget| {
            let stored = self.shared.stored.load(Ordering::Relaxed);
            (budget - budget / 8).saturating_sub(stored)
        })
    }

    /// Uncompressed bytes, of all layers of the store, that were written and are not durable yet: more
    /// than a moment's work of the disk means that it is slower than what is fetched.
    #[must_use]
    pub fn write_backlog(&self) -> u64 {
        self.shared.unsynced.load(Ordering::Relaxed)
    }

    /// Notes that written spans are durable, or will never be.
    pub(crate) fn synced(&self, written: &[u32]) {
        let lengths = written.iter().filter_map(|id| self.spans.get(SpanId(*id)));
        let sum = lengths.map(|span| length(&span)).sum();
        self.shared.unsynced.fetch_sub(sum, Ordering::Relaxed);
    }

    /// Returns what the layer takes on disk: allocated bytes, and inodes.
    ///
    /// # Errors
    /// The file system refused.
    pub fn disk_usage(&self) -> Result<(u64, u64), StoreError> {
        let failed = |e| StoreError::io("look at", &self.dir, e);
        let open = [&self.data, &self.ztoc].map(|file| file.metadata().map_err(failed));
        let paths = [&self.dir, &self.dir.join("spans"), &self.dir.join(VERDICT)];
        // A layer that was removed while it is read has no paths any more.
        let named = paths.map(|path| std::fs::symlink_metadata(path).ok());
        let (mut bytes, mut inodes) = (0_u64, 0_u64);
        for file in open {
            bytes = bytes.saturating_add(file?.blocks().saturating_mul(512));
            inodes += 1;
        }
        for file in named.into_iter().flatten() {
            bytes = bytes.saturating_add(file.blocks().saturating_mul(512));
            inodes += 1;
        }
        Ok((bytes, inodes))
    }

    fn known(&self, id: SpanId) -> Result<Span, StoreError> {
        self.spans
            .get(id)
            .ok_or_else(|| self.span_error(id, "the layer has no such span"))
    }

    fn missing_of(&self, mut needed: Range<u32>) -> Range<u32> {
        while needed.end > needed.start + 1 && self.has(SpanId(needed.end - 1)) {
            needed.end -= 1;
        }
        needed
    }

    const fn span_error(&self, span: SpanId, reason: &'static str) -> StoreError {
        StoreError::Span {
            layer: self.key.layer,
            span,
            reason,
        }
    }
}

impl Drop for StoredLayer {
    fn drop(&mut self) {
        let written = std::mem::take(&mut *self.dirty.lock());
        self.synced(&written);
        for id in (0..self.spans.len()).filter(|id| self.states.state(*id).is_stored()) {
            if let Some(span) = self.spans.get(SpanId(id)) {
                self.shared.give_room(length(&span));
            }
        }
    }
}

/// The uncompressed length of a span in bytes.
pub(crate) const fn length(span: &Span) -> u64 {
    span.uncompressed
        .end
        .saturating_sub(span.uncompressed.start)
}
