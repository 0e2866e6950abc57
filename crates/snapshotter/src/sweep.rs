//! Deletion of directories that belong to no snapshot: those of removed snapshots, and those that a
//! crash left behind.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;

use crate::directories::read_mountinfo;
use crate::error::SnapshotterError;
use crate::layer_mounts::LayerMounts;
use crate::removals::Removals;
use crate::snapshot_dir::SnapshotDir;
use crate::store::SnapshotStore;

/// Time before the first sweep, in which the server becomes ready.
const FIRST: Duration = Duration::from_secs(5);
/// Time after a removal in which further ones are waited for, so that one sweep handles several.
const DELAY: Duration = Duration::from_millis(250);

/// Deletes directories without a snapshot.
pub(crate) struct Sweeper {
    mounts: Arc<LayerMounts>,
    removals: Arc<Removals>,
    /// Held during a sweep.
    sweeping: Mutex<()>,
}

impl Sweeper {
    pub(crate) fn new(mounts: Arc<LayerMounts>, removals: Removals) -> Self {
        Self {
            mounts,
            removals: Arc::new(removals),
            sweeping: Mutex::default(),
        }
    }

    /// Sweeps whenever directories may have lost their snapshot, and for the first time when the
    /// server had time to become ready. Does not return.
    pub(crate) async fn run(self: Arc<Self>) {
        tokio::time::sleep(FIRST).await;
        loop {
            self.mounts.store.removed.notified().await;
            tokio::time::sleep(DELAY).await;
            if let Err(error) = self.sweep_due(false).await {
                let error = soci_errors::chain(&error);
                tracing::warn!(error, "cannot list the directories of removed snapshots");
            }
        }
    }

    /// Deletes the directories without a snapshot, those whose deletion failed before as well. One
    /// that cannot be deleted is logged and left to a later sweep.
    pub(crate) async fn sweep(&self) -> Result<(), SnapshotterError> {
        self.sweep_due(true).await
    }

    async fn sweep_due(&self, forced: bool) -> Result<(), SnapshotterError> {
        let _only_one = self.sweeping.lock().await;
        let store = &self.mounts.store;
        for dir in store.blocking(orphans).await? {
            if self.mounts.is_restoring(dir) {
                // The next sweep follows its end.
                continue;
            }
            if let Err(error) = self.mounts.unmount(dir).await {
                let error = soci_errors::chain(&error);
                tracing::warn!(error, "cannot unmount a removed snapshot");
                continue;
            }
            soci_faults::point("sweep-unmounted");
            let removals = Arc::clone(&self.removals);
            let deleted = store.blocking(move |store| {
                // Its end writes the record.
                let Some(_removal) = removals.begin(dir, forced) else {
                    return Ok(false);
                };
                delete(store, dir)?;
                removals.succeeded(dir);
                Ok(true)
            });
            match deleted.await {
                Ok(true) => {}
                Ok(false) => continue,
                Err(error) => {
                    self.removals.failed(dir);
                    let error = soci_errors::chain(&error);
                    tracing::warn!(error, "cannot delete a removed snapshot");
                }
            }
            self.mounts.forget_broken(dir);
        }
        store.blocking(delete_id_mapped_by_v015).await
    }
}

fn delete(store: &SnapshotStore, dir: SnapshotDir) -> Result<(), SnapshotterError> {
    if store.is_mounted(dir)? {
        let path = store.directories.snapshot(dir);
        tracing::warn!(path = %path.display(), "a removed snapshot is still mounted");
        return Ok(());
    }
    store.directories.remove(dir)?;
    soci_faults::point("sweep-deleted");
    Ok(())
}

/// Deletes the id-mapped layers that v0.15 made for snapshots that are removed by now. Those of
/// other snapshots stay: containers use them.
fn delete_id_mapped_by_v015(store: &SnapshotStore) -> Result<(), SnapshotterError> {
    let directories = store.directories.id_mapped_by_v015()?;
    if directories.is_empty() {
        return Ok(());
    }
    let reserved = store.ids.reserved();
    let known = store.metadata.ids()?;
    let table = read_mountinfo()?;
    let points = table.points();
    for (path, new) in directories {
        let unused = store.ids.owns(new) && !known.contains(&new) && !reserved.contains(&new);
        if !unused || points.any_under(&store.directories.real_path(&path)) {
            continue;
        }
        if let Err(error) = soci_dirtree::remove_path(&path) {
            tracing::warn!(path = %path.display(), %error, "cannot delete an id-mapped layer");
        }
    }
    Ok(())
}

/// Lists the directories whose snapshot has no metadata. The order matters: a snapshot that is being
/// made is reserved before it has a directory, and until it has metadata.
pub(crate) fn orphans(store: &SnapshotStore) -> Result<Vec<SnapshotDir>, SnapshotterError> {
    let mut dirs = store.directories.list()?;
    dirs.retain(|dir| store.ids.owns(dir.snapshot()));
    let reserved = store.ids.reserved();
    let known = store.metadata.ids()?;
    dirs.retain(|dir| {
        let id = dir.snapshot();
        !reserved.contains(&id) && !known.contains(&id)
    });
    Ok(dirs)
}
