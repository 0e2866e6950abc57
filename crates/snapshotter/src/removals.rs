//! Which directory is being deleted, in a file: if deleting it ends the process, the next ones know
//! the directory and, after some attempts, leave it alone. In memory, when a deletion that failed is
//! due again.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::snapshot_dir::SnapshotDir;

/// Name of the file, beside the metadata.
const FILE: &str = "removing.json";
/// How often the process may end during the deletion of a directory before it is left alone.
const MAX_DEATHS: u32 = 3;
/// Wait after the first failure; each further one doubles it.
const FIRST_WAIT: Duration = Duration::from_secs(60);
/// Longest wait after a failure.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// The record of deletions.
pub(crate) struct Removals {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    kept: Kept,
    failures: HashMap<SnapshotDir, Failure>,
}

/// What the file holds.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[serde(default)]
struct Kept {
    /// The directory that is being deleted.
    removing: Option<String>,
    /// How often the process ended during that, by directory.
    deaths: BTreeMap<String, u32>,
}

struct Failure {
    count: u32,
    due: Instant,
}

/// A deletion under way. It has ended when this is dropped; only the end of the process leaves it on
/// record.
pub(crate) struct Removal<'r>(&'r Removals);

impl Drop for Removal<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.kept.removing = None;
        self.0.write(&state.kept);
    }
}

impl Removals {
    /// Reads the record below the snapshotter's root, and logs what earlier processes died of.
    pub(crate) fn open(root: &Path) -> Self {
        let path = root.join(FILE);
        let mut kept = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice::<Kept>(&bytes).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::NotFound => Kept::default(),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot read the record of deletions");
                Kept::default()
            }
        };
        let snapshots = root.join("snapshots");
        kept.deaths.retain(|dir, _| snapshots.join(dir).exists());
        if let Some(dir) = kept.removing.take() {
            let path = snapshots.join(&dir);
            let deaths = kept.deaths.entry(dir).or_default();
            *deaths += 1;
            tracing::warn!(
                path = %path.display(),
                deaths,
                "the last process ended while it deleted a removed snapshot"
            );
        }
        for (dir, deaths) in &kept.deaths {
            if *deaths >= MAX_DEATHS {
                tracing::error!(
                    path = %snapshots.join(dir).display(),
                    deaths,
                    "a removed snapshot is not deleted, because that ended the process; delete it by hand"
                );
            }
        }
        let removals = Self {
            path,
            state: Mutex::default(),
        };
        if !kept.deaths.is_empty() {
            removals.write(&kept);
        }
        removals.state.lock().kept = kept;
        removals
    }

    /// Starts the deletion of a directory, unless it ended too many processes or, if not `forced`,
    /// failed a short time ago.
    pub(crate) fn begin(&self, dir: SnapshotDir, forced: bool) -> Option<Removal<'_>> {
        let mut state = self.state.lock();
        let name = dir.to_string();
        let deaths = state.kept.deaths.get(&name);
        if deaths.is_some_and(|deaths| *deaths >= MAX_DEATHS) {
            return None;
        }
        let failure = state.failures.get(&dir);
        if !forced && failure.is_some_and(|failure| failure.due > Instant::now()) {
            return None;
        }
        state.kept.removing = Some(name);
        self.write(&state.kept);
        Some(Removal(self))
    }

    /// Records that a directory is gone.
    pub(crate) fn succeeded(&self, dir: SnapshotDir) {
        let mut state = self.state.lock();
        state.failures.remove(&dir);
        state.kept.deaths.remove(&dir.to_string());
    }

    /// Records that a directory cannot be deleted: the next attempt must wait.
    pub(crate) fn failed(&self, dir: SnapshotDir) {
        let mut state = self.state.lock();
        let failure = state.failures.entry(dir).or_insert(Failure {
            count: 0,
            due: Instant::now(),
        });
        let wait = FIRST_WAIT.saturating_mul(1_u32.checked_shl(failure.count).unwrap_or(u32::MAX));
        failure.due = Instant::now() + wait.min(LONGEST_WAIT);
        failure.count = failure.count.saturating_add(1);
    }

    /// Not synced: it must outlive the process, not the machine.
    fn write(&self, kept: &Kept) {
        let written = if kept.removing.is_none() && kept.deaths.is_empty() {
            match fs::remove_file(&self.path) {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        } else {
            replace(&self.path, kept)
        };
        if let Err(error) = written {
            let path = self.path.display();
            tracing::warn!(%path, %error, "cannot write the record of deletions");
        }
    }
}

fn replace(path: &Path, kept: &Kept) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, serde_json::to_vec(kept)?)?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_whose_deletion_ends_the_process_is_left_alone_after_three() {
        let root = tempfile::tempdir().unwrap();
        let [bad, good] = [7, 8].map(SnapshotDir::Snapshot);
        for dir in [bad, good] {
            fs::create_dir_all(root.path().join("snapshots").join(dir.to_string())).unwrap();
        }
        for _ in 0..MAX_DEATHS {
            let removals = Removals::open(root.path());
            std::mem::forget(removals.begin(bad, true).unwrap());
        }
        let removals = Removals::open(root.path());
        assert!(removals.begin(bad, true).is_none());
        drop(removals.begin(good, true).unwrap());
        // It ended in order: the next process has nothing against it.
        assert!(Removals::open(root.path()).begin(good, true).is_some());
        // The operator deleted it.
        fs::remove_dir(root.path().join("snapshots/7")).unwrap();
        assert!(Removals::open(root.path()).begin(bad, true).is_some());
        assert!(!root.path().join(FILE).exists());
    }

    #[test]
    fn a_deletion_that_failed_waits_unless_it_is_requested() {
        let root = tempfile::tempdir().unwrap();
        let removals = Removals::open(root.path());
        let dir = SnapshotDir::Snapshot(7);
        removals.failed(dir);
        assert!(removals.begin(dir, false).is_none());
        assert!(removals.begin(dir, true).is_some());
        removals.succeeded(dir);
        assert!(removals.begin(dir, false).is_some());
    }
}
