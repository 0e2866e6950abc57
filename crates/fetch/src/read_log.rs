//! What the kernel asks of a layer: the first read of each span, for recording a start-up and for
//! judging whether what was fetched ahead is used.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::time::Instant;

/// Largest number of spans in a log.
const MOST: usize = 4096;

/// The first read of each span of a layer since the log was begun. Dropping it ends it.
#[derive(Debug, Default)]
pub struct ReadLog {
    first: Mutex<BTreeMap<u32, Instant>>,
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

    fn note(&self, spans: Range<u32>) {
        let mut first = self.first.lock();
        for span in spans {
            if first.len() >= MOST {
                return;
            }
            first.entry(span).or_insert_with(Instant::now);
        }
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

    /// Records that spans were read. Costs a look at a flag while there is no log.
    pub(crate) fn note(&self, spans: impl FnOnce() -> Range<u32>) {
        if !self.any.load(Ordering::Acquire) {
            return;
        }
        let spans = spans();
        let mut logs = self.logs.lock();
        logs.retain(|log| {
            let log = log.upgrade();
            if let Some(log) = &log {
                log.note(spans.clone());
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
    use super::*;

    #[test]
    fn each_log_has_the_first_reads_since_it_was_begun() {
        let logs = ReadLogs::default();
        logs.note(|| panic!("no log"));
        let first = logs.begin();
        logs.note(|| 1..3);
        let second = logs.begin();
        logs.note(|| 2..4);
        let spans = |log: &ReadLog| {
            log.first_reads()
                .iter()
                .map(|(s, _)| *s)
                .collect::<Vec<_>>()
        };
        assert_eq!(spans(&first), [1, 2, 3]);
        assert_eq!(spans(&second), [2, 3]);
        assert!(first.was_read(1) && !second.was_read(1));
        drop((first, second));
        logs.note(|| 1..2);
        logs.note(|| panic!("no log"));
    }
}
