//! Which hosts honour range requests, as far as their responses have shown.

use std::collections::HashMap;

use parking_lot::Mutex;
use url::Url;

/// Whether hosts honour ranges, by origin.
#[derive(Default)]
pub(crate) struct RangeSupport(Mutex<HashMap<String, bool>>);

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
