//! Space on the disk above the reserve.

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
    /// Bytes that are missing from the reserve.
    shortage: u64,
    /// Size of the file system in bytes; 0 if it cannot be asked.
    total: u64,
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
        false
    }

    /// Logs that the reserve is touched, not at every repetition.
    pub(crate) fn log_full(&self) {
        let mut state = self.state.lock();
        if state.logged.is_none_or(|logged| logged.elapsed() > SILENCE) {
            state.logged = Some(Instant::now());
            tracing::warn!(
                path = %self.dir.display(),
                percent = self.reserve.percent,
                "the disk is nearly full: layer data is not stored; layer_store.min_free_percent sets the reserve"
            );
        }
    }

    /// Bytes that must be freed before `len` more leave the reserve alone. Asks the file system now.
    pub(crate) fn shortage(&self, len: u64) -> u64 {
        if self.reserve.percent == 0 {
            return 0;
        }
        self.state.lock().looked = None;
        let state = self.look();
        match state.spare {
            0 => state.shortage.saturating_add(len),
            spare => len.saturating_sub(spare),
        }
    }

    /// Size of the file system in bytes, if it can be asked.
    pub(crate) fn total(&self) -> Option<u64> {
        let total = self.look().total;
        (total > 0).then_some(total)
    }

    /// Bytes that can be stored without touching the reserve.
    pub(crate) fn room(&self) -> u64 {
        match self.reserve.percent {
            0 => u64::MAX,
            _ => self.look().spare,
        }
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
        let Ok(space) = Space::at(&self.dir) else {
            // What cannot be asked is left to ENOSPC.
            (state.spare, state.background) = (u64::MAX, u64::MAX);
            (state.shortage, state.total) = (0, 0);
            return state;
        };
        state.spare = space.spare(self.reserve);
        state.background = space.spare(half_more);
        state.shortage = space.shortage(self.reserve);
        state.total = space.total;
        state
    }
}
