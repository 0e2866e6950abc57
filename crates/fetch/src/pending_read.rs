//! A read that waits for spans: it is answered once, whatever happens.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::{ReadDone, ReadError};

/// A read of a range of the uncompressed tar. Each part that it waits for is announced with
/// [`PendingRead::expect`] and ended with [`PendingRead::arrived`]; it starts with one part, so that
/// it cannot be over before all are announced. Dropped unanswered, it answers with an error.
pub(crate) struct PendingRead {
    offset: u64,
    buffer: Mutex<Vec<u8>>,
    parts: AtomicUsize,
    done: Mutex<Option<ReadDone>>,
}

impl PendingRead {
    pub(crate) fn new(offset: u64, len: usize, done: ReadDone) -> Self {
        Self {
            offset,
            buffer: Mutex::new(vec![0; len]),
            parts: AtomicUsize::new(1),
            done: Mutex::new(Some(done)),
        }
    }

    /// Announces one more part.
    pub(crate) fn expect(&self) {
        self.parts.fetch_add(1, Ordering::AcqRel);
    }

    /// Copies what is wanted of `bytes`, which lie at `at` in the uncompressed tar.
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

    /// Lets `read` fill a part of the buffer; what it returns is returned.
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

    /// Answers with an error, unless it was answered.
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
    let place = |at: u64| usize::try_from(at.saturating_sub(start)).unwrap_or(usize::MAX);
    place(range.start)..place(range.end)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    type Answers = Arc<Mutex<Vec<Result<Bytes, ReadError>>>>;

    fn read(offset: u64, len: usize) -> (PendingRead, Answers) {
        let answers = Answers::default();
        let to = answers.clone();
        let read = PendingRead::new(offset, len, Box::new(move |answer| to.lock().push(answer)));
        (read, answers)
    }

    #[test]
    fn it_is_answered_when_its_last_part_is_here() {
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
        assert_eq!(*answers.lock(), [Ok(Bytes::from_static(b"abcde"))]);
    }

    #[test]
    fn it_is_answered_even_when_it_is_forgotten() {
        let (read, answers) = read(0, 1);
        read.expect();
        drop(read);
        assert_eq!(*answers.lock(), [Err(ReadError::Abandoned)]);
    }
}
