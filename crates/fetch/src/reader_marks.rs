//! What readers have read of a layer: when last, and which spans. Filling takes what lies beside it
//! first.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::served_layer::ServedLayer;

const WORD: u32 = u64::BITS;

/// The spans of a layer that were read.
#[derive(Debug)]
pub(crate) struct ReaderMarks {
    since: Instant,
    /// Milliseconds since `since` of the last read, plus one; 0: none.
    last: AtomicU64,
    spans: u32,
    /// A bit for each span, allocated at the first read.
    read: OnceLock<Box<[AtomicU64]>>,
    /// Number of bits that were set.
    marked: AtomicU64,
    near: Mutex<Near>,
}

/// Whether a missing span was near one that was read, and what that followed from.
#[derive(Debug, Default)]
struct Near {
    /// Number of spans that had been read, and bytes that were stored.
    of: Option<(u64, u64)>,
    is_near: bool,
}

impl ReaderMarks {
    /// Marks for a layer with that many spans.
    pub(crate) fn new(spans: u32) -> Self {
        Self {
            since: Instant::now(),
            last: AtomicU64::new(0),
            spans,
            read: OnceLock::new(),
            marked: AtomicU64::new(0),
            near: Mutex::default(),
        }
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Notes a read of a span.
    pub(crate) fn note(&self, span: u32) {
        let now = self.millis().saturating_add(1);
        if self.last.load(Ordering::Relaxed) != now {
            self.last.store(now, Ordering::Relaxed);
        }
        let words = self.read.get_or_init(|| {
            let words = self.spans.div_ceil(WORD);
            (0..words).map(|_| AtomicU64::new(0)).collect()
        });
        if let Some(word) = words.get((span / WORD) as usize) {
            let bit = 1_u64 << (span % WORD);
            if word.load(Ordering::Relaxed) & bit == 0 {
                word.fetch_or(bit, Ordering::Relaxed);
                self.marked.fetch_add(1, Ordering::Release);
            }
        }
    }

    /// Whether there was a read within the last `time`.
    pub(crate) fn was_read_within(&self, time: Duration) -> bool {
        let last = self.last.load(Ordering::Relaxed);
        let ago = self.millis().saturating_sub(last);
        last > 0 && Duration::from_millis(ago) <= time
    }

    fn was_read(&self, span: u32) -> bool {
        let word = self
            .read
            .get()
            .and_then(|words| words.get((span / WORD) as usize));
        word.is_some_and(|word| word.load(Ordering::Relaxed) >> (span % WORD) & 1 == 1)
    }

    /// The distance of each span to the nearest one that was read, in spans; [`u32::MAX`] if none
    /// was.
    pub(crate) fn distances(&self, spans: u32) -> Vec<u32> {
        let mut distances = vec![u32::MAX; spans as usize];
        if self.read.get().is_none() {
            return distances;
        }
        let mut pass = |order: &mut dyn Iterator<Item = u32>| {
            let mut distance = u32::MAX;
            for span in order {
                distance = match self.was_read(span) {
                    true => 0,
                    false => distance.saturating_add(1),
                };
                if let Some(known) = distances.get_mut(span as usize) {
                    *known = distance.min(*known);
                }
            }
        };
        pass(&mut (0..spans));
        pass(&mut (0..spans).rev());
        distances
    }

    /// Whether a missing span of the layer is within `near` spans of one that was read. Looks at all
    /// spans only if one was read or stored since the last call: of hundreds of layers in the queue
    /// few change between two batches.
    pub(crate) fn has_near(&self, layer: &ServedLayer, near: u32) -> bool {
        let stored = layer.stored.fetched_bytes();
        self.has_near_since(stored, near, || layer.stored.missing())
    }

    fn has_near_since(
        &self,
        stored: u64,
        near: u32,
        missing: impl FnOnce() -> Vec<Range<u32>>,
    ) -> bool {
        let marked = self.marked.load(Ordering::Acquire);
        if marked == 0 {
            return false;
        }
        let mut last = self.near.lock();
        if last.of != Some((marked, stored)) {
            let distances = self.distances(self.spans);
            let is_near = |span: u32| distances.get(span as usize).is_some_and(|at| *at <= near);
            *last = Near {
                of: Some((marked, stored)),
                is_near: missing().into_iter().flatten().any(is_near),
            };
        }
        last.is_near
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn distances_are_to_the_nearest_span_that_was_read() {
        let marks = ReaderMarks::new(200);
        assert!(marks.distances(3).iter().all(|at| *at == u32::MAX));
        assert!(!marks.was_read_within(Duration::from_secs(1)));
        marks.note(2);
        marks.note(70);
        marks.note(70);
        assert!(marks.was_read_within(Duration::from_secs(1)));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(!marks.was_read_within(Duration::from_secs(1)));
        let distances = marks.distances(200);
        assert_eq!(distances[..4], [2, 1, 0, 1]);
        assert_eq!([distances[36], distances[69], distances[75]], [34, 1, 5]);
        // What a damaged table may claim.
        marks.note(u32::MAX);
    }

    /// 450 layers of hundreds of spans wait, and twenty batches a second are chosen.
    #[test]
    fn spans_are_looked_at_again_only_when_one_was_read_or_stored() {
        let marks = ReaderMarks::new(200);
        let looks = Cell::new(0);
        let has_near = |stored: u64, missing: [Range<u32>; 2]| {
            marks.has_near_since(stored, 16, || {
                looks.set(looks.get() + 1);
                missing.to_vec()
            })
        };
        assert!(!has_near(0, [0..20, 30..200]));
        assert_eq!(looks.get(), 0, "nothing was read");
        marks.note(2);
        for _ in 0..3 {
            assert!(has_near(0, [0..20, 30..200]));
            assert_eq!(looks.get(), 1);
        }
        // All that is near is stored.
        for _ in 0..3 {
            assert!(!has_near(19, [19..60, 70..200]));
            assert_eq!(looks.get(), 2);
        }
        marks.note(2);
        assert!(!has_near(19, [19..60, 70..200]));
        assert_eq!(looks.get(), 2);
        marks.note(100);
        assert!(has_near(19, [19..60, 70..200]));
        assert_eq!(looks.get(), 3);
    }
}
