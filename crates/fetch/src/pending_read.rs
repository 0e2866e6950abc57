//! Reads that wait for spans. Each is answered exactly once.

use std::ops::Range;

use bytes::Bytes;

use crate::sync::Mutex;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::{ReadDone, ReadError, StillWanted};

/// A read of a range of the uncompressed tar.
///
/// Each part that it waits for is announced with [`PendingRead::expect`] and ended with
/// [`PendingRead::arrived`]. It starts with one part, so that it cannot end before all parts are
/// announced. Dropped without an answer, it answers with [`ReadError::Abandoned`].
pub(crate) struct PendingRead {
    offset: u64,
    buffer: Mutex<Vec<u8>>,
    parts: AtomicUsize,
    /// Whether its reader still waits; `None`: it always waits.
    wanted: Option<StillWanted>,
    done: Mutex<Option<ReadDone>>,
}

impl PendingRead {
    pub(crate) fn new(
        offset: u64,
        len: usize,
        wanted: Option<StillWanted>,
        done: ReadDone,
    ) -> Self {
        Self {
            offset,
            buffer: Mutex::new(vec![0; len]),
            parts: AtomicUsize::new(1),
            wanted,
            done: Mutex::new(Some(done)),
        }
    }

    /// Whether its reader still waits.
    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted.as_ref().is_none_or(|wanted| wanted())
    }

    /// Announces one more part.
    pub(crate) fn expect(&self) {
        self.parts.fetch_add(1, Ordering::AcqRel);
    }

    /// Copies the overlap with `bytes`, which start at offset `at` of the uncompressed tar.
    pub(crate) fn fill(&self, at: u64, bytes: &[u8]) {
        let mut buffer = self.buffer.lock();
        let end = self.offset.saturating_add(buffer.len() as u64);
        let common = at.max(self.offset)..at.saturating_add(bytes.len() as u64).min(end);
        if common.start >= common.end {
            return;
        }
        let from = bytes.get(within(&common, at));
        let to = buffer.get_mut(within(&common, self.offset));
        if let (Some(from), Some(to)) = (from, to) {
            to.copy_from_slice(from);
        }
    }

    /// Calls `read` with the offset and the buffer of the overlap with `range`.
    pub(crate) fn fill_with<T>(
        &self,
        range: Range<u64>,
        read: impl FnOnce(u64, &mut [u8]) -> T,
    ) -> Option<T> {
        let mut buffer = self.buffer.lock();
        let end = self.offset.saturating_add(buffer.len() as u64);
        let common = range.start.max(self.offset)..range.end.min(end);
        let part = buffer.get_mut(within(&common, self.offset))?;
        Some(read(common.start, part))
    }

    /// Ends a part; the last one answers the read.
    pub(crate) fn arrived(&self) {
        if self.parts.fetch_sub(1, Ordering::AcqRel) == 1 {
            let bytes = std::mem::take(&mut *self.buffer.lock());
            self.answer(Ok(Bytes::from(bytes)));
        }
    }

    /// Answers with an error, unless it has been answered.
    pub(crate) fn fail(&self, error: ReadError) {
        self.answer(Err(error));
    }

    fn answer(&self, result: Result<Bytes, ReadError>) {
        let done = self.done.lock().take();
        if let Some(done) = done {
            done(result);
        }
    }
}

impl Drop for PendingRead {
    fn drop(&mut self) {
        self.fail(ReadError::Abandoned);
    }
}

fn within(range: &Range<u64>, start: u64) -> Range<usize> {
    let index = |at: u64| usize::try_from(at.saturating_sub(start)).unwrap_or(usize::MAX);
    index(range.start)..index(range.end)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    type Answers = Arc<parking_lot::Mutex<Vec<Result<Bytes, ReadError>>>>;

    fn read(offset: u64, len: usize) -> (PendingRead, Answers) {
        let answers = Answers::default();
        let to = answers.clone();
        let read = PendingRead::new(
            offset,
            len,
            None,
            Box::new(move |answer| to.lock().push(answer)),
        );
        (read, answers)
    }

    #[test]
    fn it_is_answered_when_its_last_part_arrives() {
        // The locks are shuttle's: see [`crate::sync`].
        let test = || {
            let (read, answers) = read(10, 5);
            read.expect();
            read.expect();
            read.arrived();
            read.fill(0, b"0123456789ab");
            read.arrived();
            assert!(answers.lock().is_empty());
            read.fill(12, b"cdefgh");
            read.arrived();
            read.fail(ReadError::Closed);
            drop(read);
            let answers = answers.lock();
            assert!(
                matches!(&answers[..], [Ok(bytes)] if bytes == "abcde"),
                "{answers:?}"
            );
        };
        shuttle::check_random(test, 1);
    }

    #[test]
    fn it_is_answered_even_when_it_is_forgotten() {
        let test = || {
            let (read, answers) = read(0, 1);
            read.expect();
            drop(read);
            let answers = answers.lock();
            assert!(
                matches!(answers[..], [Err(ReadError::Abandoned)]),
                "{answers:?}"
            );
        };
        shuttle::check_random(test, 1);
    }
}
