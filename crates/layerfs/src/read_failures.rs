//! Failed reads: counted, and logged with layer and path.

use std::sync::Arc;

use soci_fetch::LayerData;
use soci_telemetry::LogLimit;

use crate::counters::{Counters, count};
use crate::tree::Tree;

/// The sink of failed reads of one mount.
pub(crate) struct ReadFailures {
    pub(crate) tree: Arc<Tree>,
    pub(crate) data: Arc<dyn LayerData>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) log_limit: LogLimit,
}

impl ReadFailures {
    pub(crate) fn report(&self, ino: u64, error: &dyn std::fmt::Display) {
        count(&self.counters.read_failures);
        let Some(held_back) = self.log_limit.pass() else {
            return;
        };
        tracing::error!(
            layer = %self.data.status().digest,
            path = %String::from_utf8_lossy(&self.tree.path(ino)),
            error = %error,
            held_back,
            "reading a file failed; the reader gets EIO"
        );
    }
}
