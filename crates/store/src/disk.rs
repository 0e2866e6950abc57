//! Room on the disk above the reserve.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use soci_dirtree::{Reserve, Space};

/// How long an answer of the file system counts.
const FRESH: Duration = Duration::from_millis(500);
/// Longest silence about a full disk in the log.
const SILENCE: Duration = Duration::from_secs(60);

/// The file system of a store.
#[derive(Debug)]
pub(crate) struct Disk {
    dir: PathBuf,
    /// For what is stored because a reader needs it.
    reserve: Reserve,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    looked: Option<Instant>,
    /// Bytes above the reserve, and above that of the background.
    spare: u64,
    background: u64,
    logged: Option<Instant>,
}

impl Disk {
    pub(crate) fn new(dir: &Path, reserve: Reserve) -> Self {
        Self {
            dir: dir.to_owned(),
            reserve,
            state: Mutex::default(),
        }
    }

    /// Whether as many bytes can be stored without touching the reserve. Counts them as stored.
    pub(crate) fn has_room(&self, len: u64) -> bool {
        if self.reserve.percent == 0 {
            return true;
        }
        let mut state = self.look();
        if state.spare >= len {
            state.spare -= len;
            return true;
        }
        if state.logged.is_none_or(|logged| logged.elapsed() > SILENCE) {
            state.logged = Some(Instant::now());
            tracing::warn!(
                path = %self.dir.display(),
                percent = self.reserve.percent,
                "the disk is nearly full: layer data is not stored; layer_store.min_free_percent sets the reserve"
            );
        }
        false
    }

    /// Bytes that can be fetched in the background.
    pub(crate) fn room_for_background(&self) -> u64 {
        match self.reserve.percent {
            0 => u64::MAX,
            _ => self.look().background,
        }
    }

    fn look(&self) -> parking_lot::MutexGuard<'_, State> {
        let mut state = self.state.lock();
        if state.looked.is_some_and(|looked| looked.elapsed() < FRESH) {
            return state;
        }
        state.looked = Some(Instant::now());
        let half_more = Reserve {
            percent: self
                .reserve
                .percent
                .saturating_add(self.reserve.percent / 2),
        };
        // What cannot be asked is left to ENOSPC.
        let spare = |reserve| Space::at(&self.dir).map_or(u64::MAX, |space| space.spare(reserve));
        (state.spare, state.background) = (spare(self.reserve), spare(half_more));
        state
    }
}
