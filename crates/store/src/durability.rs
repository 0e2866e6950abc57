//! What must happen in which order, so that a crash may lose spans but never invents them: a span
//! is put on record after its data is on disk, and taken off the record before its data goes.

use std::sync::atomic::Ordering;

use rustix::fs::FallocateFlags;
use soci_ztoc::SpanId;

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
        let synced = self.data.sync_data();
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
        let taken: Vec<u32> = ids
            .iter()
            .copied()
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
        let mut result = Ok(());
        for id in taken {
            self.states.wait_for_readers(id);
            if let Some(span) = self.spans.get(SpanId(id)) {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                let (start, len) = (span.uncompressed.start, length(&span));
                if let Err(error) = rustix::fs::fallocate(&self.data, flags, start, len) {
                    let path = self.dir.join("data");
                    result = Err(StoreError::io("punch a hole into", path, error.into()));
                }
            }
            self.uncount(SpanId(id));
            self.states.change(id, State::Busy, State::Missing);
        }
        result
    }
}
