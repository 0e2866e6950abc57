//! Reads by a process of the daemon itself, ahead of containers: they are answered like others, and
//! are not the first read of a file by a container.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use soci_fetch::LayerData;

/// The process of the daemon that reads files of its own mounts, while there is one.
#[derive(Debug, Default)]
pub struct OwnReader(AtomicU32);

impl OwnReader {
    /// Sets the process: the id of its only thread in the PID namespace of the mounts.
    pub fn set(&self, pid: Option<u32>) {
        self.0.store(pid.unwrap_or(0), Ordering::Release);
    }

    /// Whether a request comes from the process. Requests of processes that the mounter does not see
    /// have thread id 0.
    pub(crate) fn sent(&self, thread: u32) -> bool {
        thread != 0 && self.0.load(Ordering::Acquire) == thread
    }
}

/// What the reads of the daemon's own process are answered from.
#[derive(Clone)]
pub struct OwnReads {
    /// The process.
    pub reader: Arc<OwnReader>,
    /// The content of the layer.
    pub data: Arc<dyn LayerData>,
}

impl std::fmt::Debug for OwnReads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OwnReads")
            .field("reader", &self.reader)
            .finish_non_exhaustive()
    }
}
