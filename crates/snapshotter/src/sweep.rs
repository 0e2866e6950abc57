//! Deleting directories that belong to no snapshot: removed ones, and what a crash left behind.

use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::error::SnapshotterError;
use crate::snapshotter::Inner;

/// From a removal to the sweep that nobody asked for; more removals may come until then.
const DELAY: Duration = Duration::from_secs(5);

impl Inner {
    /// Sweeps at the start, and some time after each removal, as long as the snapshotter is open.
    pub(crate) async fn sweep_in_background(inner: Weak<Self>) {
        loop {
            let Some(strong) = inner.upgrade() else {
                return;
            };
            strong.removed.notified().await;
            if let Err(error) = strong.sweep().await {
                tracing::warn!(%error, "cannot look for directories of removed snapshots");
            }
            drop(strong);
            tokio::time::sleep(DELAY).await;
        }
    }

    /// Deletes the directories without a snapshot. One that cannot be deleted is logged and left
    /// to the next sweep.
    pub(crate) async fn sweep(self: &Arc<Self>) -> Result<(), SnapshotterError> {
        let _only_one = self.sweeping.lock().await;
        for id in self.blocking(|inner| inner.orphans()).await? {
            let mountpoint = self.directories.fs(id);
            if let Err(error) = self.provider.unmount(&mountpoint).await {
                tracing::warn!(%error, "cannot unmount a removed snapshot");
                continue;
            }
            faults::point("sweep-unmounted");
            let deleted = self.blocking(move |inner| {
                if inner.mounted_now(id)? {
                    let path = inner.directories.snapshot(id);
                    tracing::warn!(path = %path.display(), "a removed snapshot is still mounted");
                    return Ok(());
                }
                inner.directories.remove(id)?;
                faults::point("sweep-deleted");
                Ok(())
            });
            if let Err(error) = deleted.await {
                tracing::warn!(%error, "cannot delete a removed snapshot");
            }
        }
        Ok(())
    }

    /// The ids that have a directory of ours and no metadata. The order matters: a snapshot that
    /// is being made is in flight before it has a directory, and until it has metadata.
    fn orphans(&self) -> Result<Vec<u64>, SnapshotterError> {
        let mut ids = self.directories.ids()?;
        ids.retain(|id| *id >= self.first_id);
        let in_flight = self.in_flight();
        let known = self.metadata.ids()?;
        ids.retain(|id| !in_flight.contains(id) && !known.contains(id));
        Ok(ids)
    }
}
