//! Reports the first read of each file of a layer to its watchers.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

/// Number of files that one watcher is notified of.
const MOST_FILES: usize = 1 << 16;

type Notify = Box<dyn Fn(u64) + Send + Sync>;

/// The watchers of a layer's files. Costs a look at a flag while there are none.
#[derive(Debug, Default)]
pub struct FileWatch {
    any: AtomicBool,
    watchers: Mutex<Vec<Weak<FileWatcher>>>,
}

/// A watcher of a layer's files. Dropping it ends it.
pub struct FileWatcher {
    seen: Mutex<HashSet<u64>>,
    notify: Notify,
}

impl std::fmt::Debug for FileWatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileWatcher").finish_non_exhaustive()
    }
}

impl FileWatch {
    /// Calls `notify` with the inode number of each file when it is first read from now on. It is
    /// called by a thread that answers requests, and must not wait.
    #[must_use]
    pub fn begin(&self, notify: impl Fn(u64) + Send + Sync + 'static) -> Arc<FileWatcher> {
        let watcher = Arc::new(FileWatcher {
            seen: Mutex::default(),
            notify: Box::new(notify),
        });
        self.watchers.lock().push(Arc::downgrade(&watcher));
        self.any.store(true, Ordering::Release);
        watcher
    }

    /// Records a read.
    pub(crate) fn note(&self, ino: u64) {
        if !self.any.load(Ordering::Acquire) {
            return;
        }
        let mut watchers = self.watchers.lock();
        watchers.retain(|watcher| {
            let watcher = watcher.upgrade();
            if let Some(watcher) = &watcher {
                watcher.note(ino);
            }
            watcher.is_some()
        });
        if watchers.is_empty() {
            self.any.store(false, Ordering::Release);
        }
    }
}

impl FileWatcher {
    fn note(&self, ino: u64) {
        let mut seen = self.seen.lock();
        let is_new = seen.len() < MOST_FILES && seen.insert(ino);
        drop(seen);
        if is_new {
            (self.notify)(ino);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_is_reported_once_to_each_watcher() {
        let watch = FileWatch::default();
        watch.note(7);
        let begin = || {
            let (send, seen) = std::sync::mpsc::channel();
            (watch.begin(move |ino| send.send(ino).unwrap()), seen)
        };
        let (first, of_first) = begin();
        watch.note(1);
        let (second, of_second) = begin();
        watch.note(1);
        watch.note(2);
        drop(first);
        watch.note(3);
        drop(second);
        watch.note(4);
        assert!(!watch.any.load(Ordering::Acquire));
        assert_eq!(of_first.iter().collect::<Vec<_>>(), [1, 2]);
        assert_eq!(of_second.iter().collect::<Vec<_>>(), [1, 2, 3]);
    }
}
