//! What must happen in which order, so that a crash may lose spans but never invents them: a span
//! is put on record after its data is on disk, and removed from the record before its data is freed.

use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::Ordering;

use rustix::fs::FallocateFlags;
use soci_ztoc::SpanId;

use crate::disk_fault::fault;
use crate::page_cache;
use crate::span_states::State;
use crate::spans_file::Kept;
use crate::stored_layer::length;
use crate::{StoreError, StoredLayer};

impl StoredLayer {
    /// Makes written spans durable: first the data, then the record that they are stored.
    ///
    /// # Errors
    /// The file system refused. Spans whose data may not be on disk are compared with their checksum
    /// at their next use.
    pub fn sync(&self) -> Result<(), StoreError> {
        let _one = self.syncing.lock();
        if self.removed.load(Ordering::Acquire) {
            return Ok(());
        }
        let written = std::mem::take(&mut *self.dirty.lock());
        if written.is_empty() {
            return Ok(());
        }
        let synced = fault("store-sync-data").and_then(|()| self.data.sync_data());
        self.synced(&written);
        if let Err(error) = synced {
            for id in written {
                self.states.change(id, State::Fresh, State::Unchecked);
            }
            return Err(StoreError::io("sync", self.dir.join("data"), error));
        }
        let mut durable = Vec::with_capacity(written.len());
        {
            let mut record = self.record.lock();
            for id in written {
                if self.states.state(id) == State::Fresh {
                    durable.push(Kept {
                        span: id,
                        sum: self.states.sum(id),
                    });
                }
            }
            if let Err(error) = record.set(&durable) {
                let spans = durable
                    .iter()
                    .filter_map(|kept| self.spans.get(SpanId(kept.span)));
                let again = spans.map(|span| length(&span)).sum();
                self.shared.unsynced.fetch_add(again, Ordering::Relaxed);
                self.dirty
                    .lock()
                    .extend(durable.iter().map(|kept| kept.span));
                return Err(error);
            }
            for kept in &durable {
                self.states.change(kept.span, State::Fresh, State::Durable);
            }
        }
        for span in durable
            .iter()
            .filter_map(|kept| self.spans.get(SpanId(kept.span)))
        {
            page_cache::drop_range(&self.data, span.uncompressed);
        }
        Ok(())
    }

    /// The spans that could be removed, when they were last used, and their uncompressed lengths.
    pub(crate) fn removable(&self) -> Vec<(u32, u32, u64)> {
        (0..self.spans.len())
            .filter(|id| matches!(self.states.state(*id), State::Durable | State::Unchecked))
            .filter_map(|id| {
                Some((
                    id,
                    self.states.used(id),
                    length(&self.spans.get(SpanId(id))?),
                ))
            })
            .filter(|(_, _, len)| *len > 0)
            .collect()
    }

    /// Removes spans: first from the record, then, when their readers are done, their data.
    pub(crate) fn discard(&self, ids: &[u32]) -> Result<(), StoreError> {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        let taken: Vec<u32> = ids
            .into_iter()
            .filter(|id| {
                self.states.change(*id, State::Durable, State::Busy)
                    || self.states.change(*id, State::Unchecked, State::Busy)
            })
            .collect();
        if taken.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.record.lock().clear(&taken) {
            for id in taken {
                self.states.change(id, State::Busy, State::Unchecked);
            }
            return Err(error);
        }
        soci_faults::point("store-evict-recorded");
        let mut result = Ok(());
        // Neighbours go together: a block that two spans share is freed only with both.
        for run in taken.chunk_by(|a, b| a.checked_add(1) == Some(*b)) {
            let spans = run.iter().filter_map(|id| self.spans.get(SpanId(*id)));
            let ranges = spans.map(|span| span.uncompressed);
            let Some(range) = ranges.reduce(|a, b| a.start..b.end) else {
                continue;
            };
            run.iter().for_each(|id| self.states.wait_for_readers(*id));
            let len = range.end.saturating_sub(range.start);
            // What cannot be freed now is freed when the layer is opened again.
            result = result.and(self.punch(range));
            soci_faults::point("store-evict-punched");
            self.shared.evicted.fetch_add(len, Ordering::Relaxed);
            for id in run {
                self.uncount(SpanId(*id));
                self.states.change(*id, State::Busy, State::Missing);
            }
        }
        result
    }

    /// Evicts all spans that may be fetched again, and returns the freed bytes: for a layer that
    /// is removed while it has readers.
    ///
    /// # Errors
    /// The file system refused.
    pub fn release(&self) -> Result<u64, StoreError> {
        self.sync()?;
        let spans = self.removable();
        let ids: Vec<u32> = spans.iter().map(|(id, ..)| *id).collect();
        self.discard(&ids)?;
        Ok(spans.iter().map(|(.., len)| len).sum())
    }

    /// Frees the space of a part of the data.
    fn punch(&self, range: std::ops::Range<u64>) -> Result<(), StoreError> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let len = range.end.saturating_sub(range.start);
        let punched = fault("store-punch")
            .and_then(|()| Ok(rustix::fs::fallocate(&self.data, flags, range.start, len)?));
        punched.map_err(|error| StoreError::io("punch a hole into", self.dir.join("data"), error))
    }

    /// Frees what is in the file without being on record: written, or being evicted, when an earlier
    /// process ended. Called before the layer has users.
    pub(crate) fn free_unrecorded(&self) {
        let stored: u64 = (0..self.spans.len())
            .filter(|id| self.states.state(*id).is_stored())
            .filter_map(|id| Some(length(&self.spans.get(SpanId(id))?)))
            .sum();
        let runs = self.missing();
        let Ok(metadata) = self.data.metadata() else {
            return;
        };
        let allocated = metadata.blocks().saturating_mul(512);
        // At its ends a run shares blocks with its neighbours.
        let shared = (runs.len() as u64).saturating_mul(2 * metadata.blksize());
        if allocated <= stored.saturating_add(shared) {
            return;
        }
        for run in runs {
            let first = self.spans.get(SpanId(run.start));
            let last = run.end.checked_sub(1).map(SpanId);
            let last = last.and_then(|last| self.spans.get(last));
            if let (Some(first), Some(last)) = (first, last)
                && let Err(error) = self.punch(first.uncompressed.start..last.uncompressed.end)
            {
                tracing::warn!(layer = %self.key.layer, error = %error, "space that holds no data cannot be freed");
                return;
            }
        }
    }
}
