//! Admission of calls until the snapshotter is closed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedRwLockReadGuard, RwLock};
use tokio_util::sync::CancellationToken;

use crate::error::SnapshotterError;

/// A call that has been admitted. Closing waits until it is dropped.
pub(crate) type Call = OwnedRwLockReadGuard<()>;

/// Admits calls until it is closed.
#[derive(Default)]
pub(crate) struct CallGate {
    closing: CancellationToken,
    /// Held for reading by each call, for writing by the close.
    calls: Arc<RwLock<()>>,
}

impl CallGate {
    /// Admits a call, or refuses it after [`CallGate::close`].
    pub(crate) fn enter(&self) -> Result<Call, SnapshotterError> {
        if self.closing.is_cancelled() {
            return Err(SnapshotterError::Closed);
        }
        Arc::clone(&self.calls)
            .try_read_owned()
            .map_err(|_| SnapshotterError::Closed)
    }

    /// Returns a token that is cancelled by [`CallGate::close`], to end long work early.
    pub(crate) fn closing(&self) -> CancellationToken {
        self.closing.clone()
    }

    /// Refuses further calls.
    pub(crate) fn close(&self) {
        self.closing.cancel();
    }

    /// Waits until no call is under way, and returns whether that happened within `limit`.
    pub(crate) async fn drain(&self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.calls.write())
            .await
            .is_ok()
    }
}
