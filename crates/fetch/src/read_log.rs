//! What the kernel asks of a layer: the first read of each span and the blocks that are read, for
//! recording a start-up and for judging whether what was fetched ahead is used.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::time::Instant;

/// Largest number of spans in a log.
const MOST: usize = 4096;
/// Bytes of a block.
const BLOCK: u64 = 64 << 10;
/// Number of runs of blocks that are kept of a layer.
const MOST_RUNS: usize = 16 << 10;

/// The first read of each span of a layer since the log was begun, and the blocks of 64 KiB of its
/// tar that were read. Dropping it ends it.
#[derive(Debug, Default)]
pub struct ReadLog {
    first: Mutex<BTreeMap<u32, Instant>>,
    /// Starts and ends of runs of blocks, which do not touch.
    blocks: Mutex<BTreeMap<u32, u32>>,
}

impl ReadLog {
    /// Returns the spans that were read, with the time of the first read of each.
    #[must_use]
    pub fn first_reads(&self) -> Vec<(u32, Instant)> {
        let first = self.first.lock();
        first.iter().map(|(span, at)| (*span, *at)).collect()
    }

    /// Whether a span was read.
    #[must_use]
    pub fn was_read(&self, span: u32) -> bool {
        self.first.lock().contains_key(&span)
    }

    /// Returns the blocks that were read, as sorted runs of block numbers.
    #[must_use]
    pub fn blocks(&self) -> Vec<Range<u32>> {
        let blocks = self.blocks.lock();
        blocks.iter().map(|(start, end)| *start..*end).collect()
    }

    fn note(&self, spans: Range<u32>, bytes: &Range<u64>) {
        {
            let mut first = self.first.lock();
            for span in spans {
                if first.len() >= MOST {
                    break;
                }
                first.entry(span).or_insert_with(Instant::now);
            }
        }
        let number = |block: u64| u32::try_from(block).unwrap_or(u32::MAX);
        let start = number(bytes.start / BLOCK);
        let end = number(bytes.end.div_ceil(BLOCK));
        if !bytes.is_empty() {
            add_run(&mut self.blocks.lock(), start..end);
        }
    }
}

/// Adds a run to runs that do not touch.
fn add_run(runs: &mut BTreeMap<u32, u32>, run: Range<u32>) {
    let (mut start, mut end) = (run.start, run.end);
    if let Some((first, last)) = runs.range(..=start).next_back()
        && *last >= start
    {
        if *last >= end {
            return;
        }
        start = *first;
    }
    while let Some((first, last)) = runs.range(start..=end).next() {
        let first = *first;
        end = end.max(*last);
        runs.remove(&first);
    }
    if runs.len() < MOST_RUNS {
        runs.insert(start, end);
    }
}

/// The logs of a layer.
#[derive(Debug, Default)]
pub(crate) struct ReadLogs {
    any: AtomicBool,
    logs: Mutex<Vec<Weak<ReadLog>>>,
}

impl ReadLogs {
    /// Begins a log.
    pub(crate) fn begin(&self) -> Arc<ReadLog> {
        let log = Arc::new(ReadLog::default());
        self.logs.lock().push(Arc::downgrade(&log));
        self.any.store(true, Ordering::Release);
        log
    }

    /// Records that a range of the tar, which is in `spans`, was read. Costs a look at a flag while there is no log.
    pub(crate) fn note(&self, bytes: &Range<u64>, spans: impl FnOnce() -> Range<u32>) {
        if !self.any.load(Ordering::Acquire) {
            return;
        }
        let spans = spans();
        let mut logs = self.logs.lock();
        logs.retain(|log| {
            let log = log.upgrade();
            if let Some(log) = &log {
                log.note(spans.clone(), bytes);
            }
            log.is_some()
        });
        if logs.is_empty() {
            self.any.store(false, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn runs_are_sorted_and_do_not_touch(
            list in prop::collection::vec((0..200_u32, 1..20_u32), 0..60),
        ) {
            let mut runs = BTreeMap::new();
            let mut all = BTreeSet::new();
            for (start, length) in list {
                add_run(&mut runs, start..start + length);
                all.extend(start..start + length);
                let found: BTreeSet<u32> = runs.iter().flat_map(|(s, e)| *s..*e).collect();
                prop_assert_eq!(&found, &all);
            }
            let ends = runs.iter().zip(runs.iter().skip(1));
            for ((_, end), (start, _)) in ends {
                prop_assert!(end < start);
            }
        }
    }

    #[test]
    fn each_log_has_the_first_reads_since_it_was_begun() {
        let logs = ReadLogs::default();
        logs.note(&(0..1), || panic!("no log"));
        let first = logs.begin();
        logs.note(&(5..BLOCK + 1), || 1..3);
        let second = logs.begin();
        logs.note(&(9 * BLOCK..10 * BLOCK), || 2..4);
        let spans = |log: &ReadLog| {
            log.first_reads()
                .iter()
                .map(|(s, _)| *s)
                .collect::<Vec<_>>()
        };
        assert_eq!(spans(&first), [1, 2, 3]);
        assert_eq!(spans(&second), [2, 3]);
        assert!(first.was_read(1) && !second.was_read(1));
        assert_eq!(first.blocks(), [0..2, 9..10]);
        assert_eq!(second.blocks(), vec![Range { start: 9, end: 10 }]);
        drop((first, second));
        logs.note(&(0..1), || 1..2);
        logs.note(&(0..1), || panic!("no log"));
    }
}
