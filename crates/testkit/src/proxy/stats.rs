//! What went through the proxy, by its own count.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use soci_oci::Digest;

/// Counts of one path (without query) or of several together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PathStats {
    /// Requests, whatever came of them.
    pub requests: u64,
    /// Body bytes sent to clients.
    pub bytes: u64,
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestRecord {
    /// The method.
    pub method: String,
    /// The path, without query.
    pub path: String,
    /// The value of `Range`.
    pub range: Option<String>,
    /// The value of `User-Agent`.
    pub user_agent: Option<String>,
    /// Whether it carried `Authorization`.
    pub authorized: bool,
    /// The status sent; 0 when none was (yet).
    pub status: u16,
    /// Body bytes sent to the client so far.
    pub bytes: u64,
}

/// Everything that went through since the start or the last reset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Every request in the order of arrival.
    pub log: Vec<RequestRecord>,
    /// The largest number of requests that were in flight at the same time.
    pub peak_in_flight: u64,
}

impl Stats {
    /// Requests and body bytes of the requests that `wanted` accepts.
    #[must_use]
    pub fn of(&self, wanted: impl Fn(&RequestRecord) -> bool) -> PathStats {
        let mut sum = PathStats::default();
        for record in self.log.iter().filter(|record| wanted(record)) {
            sum.requests += 1;
            sum.bytes += record.bytes;
        }
        sum
    }

    /// Everything together.
    #[must_use]
    pub fn total(&self) -> PathStats {
        self.of(|_| true)
    }

    /// One blob, in whatever repository.
    #[must_use]
    pub fn blob(&self, digest: Digest) -> PathStats {
        let end = format!("/blobs/{digest}");
        self.of(|record| record.path.ends_with(&end))
    }

    /// All blobs.
    #[must_use]
    pub fn blobs(&self) -> PathStats {
        self.of(|record| record.path.contains("/blobs/sha256:"))
    }

    /// All manifests and indexes.
    #[must_use]
    pub fn manifests(&self) -> PathStats {
        self.of(|record| record.path.contains("/manifests/"))
    }

    /// Counts by path.
    #[must_use]
    pub fn by_path(&self) -> BTreeMap<String, PathStats> {
        let mut paths = BTreeMap::<String, PathStats>::new();
        for record in &self.log {
            let sum = paths.entry(record.path.clone()).or_default();
            sum.requests += 1;
            sum.bytes += record.bytes;
        }
        paths
    }
}

#[derive(Debug, Default)]
struct State {
    stats: Stats,
    in_flight: u64,
    /// Counts resets, so that a response from before one is not booked after it.
    epoch: u64,
}

/// The live count.
#[derive(Debug, Default)]
pub(crate) struct Counter(Mutex<State>);

/// A request being answered.
#[derive(Debug)]
pub(crate) struct Ticket<'a> {
    counter: &'a Counter,
    epoch: u64,
    at: usize,
    is_answered: AtomicBool,
}

impl Counter {
    pub(crate) fn begin(&self, record: RequestRecord) -> Ticket<'_> {
        let mut state = self.0.lock();
        state.in_flight += 1;
        state.stats.peak_in_flight = state.stats.peak_in_flight.max(state.in_flight);
        state.stats.log.push(record);
        Ticket {
            counter: self,
            epoch: state.epoch,
            at: state.stats.log.len() - 1,
            is_answered: AtomicBool::new(false),
        }
    }

    pub(crate) fn snapshot(&self) -> Stats {
        self.0.lock().stats.clone()
    }

    pub(crate) fn reset(&self) {
        let mut state = self.0.lock();
        state.stats = Stats {
            log: Vec::new(),
            peak_in_flight: state.in_flight,
        };
        state.epoch += 1;
    }
}

impl Ticket<'_> {
    pub(crate) fn status(&self, status: u16) {
        self.change(|record| record.status = status);
    }

    /// Counts bytes, before they are sent: a client that has read them finds them counted.
    pub(crate) fn sends(&self, bytes: u64) {
        self.change(|record| record.bytes += bytes);
    }

    /// Takes back bytes that could not be sent.
    pub(crate) fn not_sent(&self, bytes: u64) {
        self.change(|record| record.bytes -= bytes);
    }

    /// Ends the request, before its last byte is sent: the client's next request does not find it in flight.
    pub(crate) fn answered(&self) {
        if !self.is_answered.swap(true, Ordering::Relaxed) {
            self.counter.0.lock().in_flight -= 1;
        }
    }

    fn change(&self, change: impl FnOnce(&mut RequestRecord)) {
        let mut state = self.counter.0.lock();
        if state.epoch == self.epoch
            && let Some(record) = state.stats.log.get_mut(self.at)
        {
            change(record);
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.answered();
    }
}
