//! Which hosts honour range requests, as far as their responses have shown.

use parking_lot::Mutex;
use url::Url;

use crate::bounded::Bounded;

/// Most hosts that are remembered: redirects name them, and names may be without number.
const MAX_HOSTS: usize = 1024;

/// What a host does with a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ranges {
    /// It sends the range.
    Honoured,
    /// It sends everything; a cache may send ranges later.
    Ignored,
    /// Its answers to ranges cannot be used: whole blobs are requested.
    Unusable,
}

/// What hosts do with ranges, by origin.
pub(crate) struct RangeSupport(Mutex<Bounded<String, Ranges>>);

impl Default for RangeSupport {
    fn default() -> Self {
        Self(Mutex::new(Bounded::new(MAX_HOSTS)))
    }
}

impl RangeSupport {
    /// What the host of `url` does; `None` if that is not known yet.
    pub(crate) fn of(&self, url: &Url) -> Option<Ranges> {
        self.0
            .lock()
            .get(&url.origin().ascii_serialization())
            .copied()
    }

    /// Notes what a response of the host of `url` showed.
    pub(crate) fn note(&self, url: &Url, ranges: Ranges) {
        self.0
            .lock()
            .insert(url.origin().ascii_serialization(), ranges);
    }
}
