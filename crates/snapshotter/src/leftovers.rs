//! Directories below `snapshots/` that belong to no snapshot, for operators who look for them.

use std::path::PathBuf;

use crate::directories::read_mountinfo;
use crate::error::SnapshotterError;
use crate::snapshotter::Snapshotter;
use crate::store::SnapshotStore;
use crate::sweep::orphans;

impl Snapshotter {
    /// Lists the directories that belong to no snapshot, those with names that are not given here
    /// among them. What has mounts below it is left out.
    ///
    /// # Errors
    /// The metadata or the directory cannot be read, or the snapshotter is closed.
    pub async fn leftovers(&self) -> Result<Vec<PathBuf>, SnapshotterError> {
        let _call = self.calls.enter()?;
        self.store
            .blocking(|store| {
                let mut found = unknown(store)?;
                let orphans = orphans(store)?.into_iter();
                found.extend(orphans.map(|dir| store.directories.snapshot(dir)));
                found.sort();
                Ok(found)
            })
            .await
    }

    /// Deletes what [`Snapshotter::leftovers`] lists. What cannot be deleted is logged, and listed
    /// again.
    ///
    /// # Errors
    /// As [`Snapshotter::leftovers`].
    pub async fn remove_leftovers(&self) -> Result<(), SnapshotterError> {
        self.cleanup().await?;
        let _call = self.calls.enter()?;
        self.store
            .blocking(|store| {
                for path in unknown(store)? {
                    if let Err(error) = soci_dirtree::remove_path(&path) {
                        tracing::warn!(path = %path.display(), %error, "cannot delete an unknown directory");
                    }
                }
                Ok(())
            })
            .await
    }
}

fn unknown(store: &SnapshotStore) -> Result<Vec<PathBuf>, SnapshotterError> {
    let mut found = store.directories.unknown()?;
    let table = read_mountinfo()?;
    let points = table.points();
    found.retain(|path| !points.any_under(&store.directories.real_path(path)));
    Ok(found)
}
