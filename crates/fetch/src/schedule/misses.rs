//! Repositories whose readers wait for spans now: what is fetched ahead of readers elsewhere leaves
//! them the link and the cores.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

/// Time after a miss in which another is likely: while a program starts, its misses follow each
/// other more closely.
pub(super) const RECENT: Duration = Duration::from_millis(250);

/// When a reader of each repository last wanted a span that was not stored.
#[derive(Debug, Default)]
pub(super) struct Misses {
    /// Entries may be outdated.
    last: HashMap<Arc<str>, Instant>,
}

impl Misses {
    /// Records that a reader of a repository waits.
    pub(super) fn record(&mut self, repository: &Arc<str>, now: Instant) {
        if let Some(last) = self.last.get_mut(repository) {
            *last = now;
            return;
        }
        self.last.retain(|_, last| is_recent(*last, now));
        self.last.insert(Arc::clone(repository), now);
    }

    /// Whether readers of another repository waited a moment ago.
    pub(super) fn elsewhere(&self, repository: &str, now: Instant) -> bool {
        let mut others = self.last.iter().filter(|(of, _)| &***of != repository);
        others.any(|(_, last)| is_recent(*last, now))
    }
}

fn is_recent(miss: Instant, now: Instant) -> bool {
    now.saturating_duration_since(miss) < RECENT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_miss_counts_for_other_repositories_and_for_a_moment() {
        let (start, mut misses) = (Instant::now(), Misses::default());
        let [one, other]: [Arc<str>; 2] = ["host/one".into(), "host/other".into()];
        assert!(!misses.elsewhere(&one, start));
        misses.record(&one, start);
        assert!(!misses.elsewhere(&one, start) && misses.elsewhere(&other, start));
        let later = start + RECENT;
        assert!(!misses.elsewhere(&other, later));
        misses.record(&other, later);
        assert!(misses.elsewhere(&one, later) && !misses.elsewhere(&other, later));
        assert_eq!(misses.last.len(), 1, "what is outdated is not kept");
    }
}
