//! Deleting directories that belong to no snapshot: removed ones, and what a crash left behind.

use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::error::SnapshotterError;
use crate::place::Place;
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
        for place in self.blocking(|inner| inner.orphans()).await? {
            let mountpoint = self.directories.fs(place);
            if let Err(error) = self.provider.unmount(&mountpoint).await {
                tracing::warn!(%error, "cannot unmount a removed snapshot");
                continue;
            }
            soci_faults::point("sweep-unmounted");
            let deleted = self.blocking(move |inner| {
                if inner.mounted_now(place)? {
                    let path = inner.directories.snapshot(place);
                    tracing::warn!(path = %path.display(), "a removed snapshot is still mounted");
                    return Ok(());
                }
                inner.directories.remove(place)?;
                soci_faults::point("sweep-deleted");
                Ok(())
            });
            if let Err(error) = deleted.await {
                tracing::warn!(%error, "cannot delete a removed snapshot");
            }
        }
        self.blocking(|inner| inner.sweep_id_mapped()).await
    }

    /// Deletes the id-mapped layers that v0.15 made for snapshots that are removed by now. Those of
    /// others stay: containers run from them.
    fn sweep_id_mapped(&self) -> Result<(), SnapshotterError> {
        let folders = self.directories.id_mapped()?;
        if folders.is_empty() {
            return Ok(());
        }
        let in_flight = self.in_flight();
        let known = self.metadata.ids()?;
        let failed = SnapshotterError::io("read", soci_mountinfo::PATH.as_ref());
        let table = soci_mountinfo::Table::read().map_err(failed)?;
        let mounts = table.points();
        for (path, new) in folders {
            let unused = new >= self.first_id && !known.contains(&new) && !in_flight.contains(&new);
            if !unused || mounts.any_under(&self.directories.real_path(&path)) {
                continue;
            }
            if let Err(error) = std::fs::remove_dir_all(&path) {
                tracing::warn!(path = %path.display(), %error, "cannot delete an id-mapped layer");
            }
        }
        Ok(())
    }

    /// The places of ours whose snapshot has no metadata. The order matters: a snapshot that
    /// is being made is in flight before it has a directory, and until it has metadata.
    fn orphans(&self) -> Result<Vec<Place>, SnapshotterError> {
        let mut places = self.directories.places()?;
        places.retain(|place| place.snapshot() >= self.first_id);
        let in_flight = self.in_flight();
        let known = self.metadata.ids()?;
        places.retain(|place| {
            let id = place.snapshot();
            !in_flight.contains(&id) && !known.contains(&id)
        });
        Ok(places)
    }
}
