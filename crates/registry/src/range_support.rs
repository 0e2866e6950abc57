//! Which hosts honour range requests, as far as their responses have shown.

use parking_lot::Mutex;
use url::Url;

use crate::bounded::Bounded;

/// Most hosts that are remembered: redirects name them, and names may be without number.
const MAX_HOSTS: usize = 1024;

/// Whether hosts honour ranges, by origin.
pub(crate) struct RangeSupport(Mutex<Bounded<String, bool>>);

impl Default for RangeSupport {
    fn default() -> Self {
        Self(Mutex::new(Bounded::new(MAX_HOSTS)))
    }
}

impl RangeSupport {
    /// Whether the host of `url` honours ranges; `None` if that is not known yet.
    pub(crate) fn of(&self, url: &Url) -> Option<bool> {
        self.0
            .lock()
            .get(&url.origin().ascii_serialization())
            .copied()
    }

    /// Notes what a response of the host of `url` showed.
    pub(crate) fn note(&self, url: &Url, honoured: bool) {
        self.0
            .lock()
            .insert(url.origin().ascii_serialization(), honoured);
    }
}
