//! The state of the snapshots on disk: their metadata and their directories.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::Notify;

use crate::api::types::Mount;
use crate::api::v1::Kind;
use crate::comparisons::Comparisons;
use crate::directories::{Directories, read_mountinfo};
use crate::error::SnapshotterError;
use crate::ids::{Ids, Reservation};
use crate::labels::Labels;
use crate::lowerdirs::LowerDirs;
use crate::metadata::{Link, Metadata, NewSnapshot, Record, Snapshot};
use crate::mounts::{OverlayOptions, mounts};
use crate::snapshot_dir::SnapshotDir;
use crate::v015;
use soci_layer::CommittedLayers;

/// An active snapshot or a view that a client requests.
pub(crate) struct Creation {
    pub(crate) kind: Kind,
    pub(crate) key: String,
    pub(crate) parent: String,
    pub(crate) labels: Labels,
}

impl std::fmt::Debug for SnapshotStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotStore").finish_non_exhaustive()
    }
}

impl CommittedLayers for SnapshotStore {
    fn contains(&self, target: &str) -> bool {
        self.metadata.has_target(target).unwrap_or(false)
    }
}

/// The metadata and the directories of all snapshots. Its methods block on the disk.
pub(crate) struct SnapshotStore {
    pub(crate) metadata: Metadata,
    pub(crate) directories: Directories,
    pub(crate) overlay: OverlayOptions,
    pub(crate) ids: Ids,
    pub(crate) comparisons: Comparisons,
    /// Notified when a directory may have no snapshot any more. Wakes the sweeper.
    pub(crate) removed: Notify,
}

impl SnapshotStore {
    /// Opens or creates the store in the directory `root`.
    pub(crate) fn open(root: &Path, userxattr: bool) -> Result<Self, SnapshotterError> {
        let directories = Directories::open(root)?;
        let metadata = v015::open_metadata(root, directories.real())?;
        let dirs = directories.list()?.into_iter();
        let highest = dirs.map(SnapshotDir::snapshot).max().unwrap_or(0);
        // A crash can leave a directory with an id that the metadata does not know.
        let unused = metadata.next_id()?.max(highest.saturating_add(1));
        let first = metadata.claim_ids(unused)?;
        Ok(Self {
            overlay: OverlayOptions::detect(userxattr),
            directories,
            metadata,
            ids: Ids::new(first, unused),
            comparisons: Comparisons::default(),
            removed: Notify::new(),
        })
    }

    /// Runs blocking work on the store. It runs to its end even if the caller is dropped.
    pub(crate) async fn blocking<R: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<R, SnapshotterError> + Send + 'static,
    ) -> Result<R, SnapshotterError> {
        let store = Arc::clone(self);
        soci_task::blocking(move || work(&store)).await
    }

    /// Adds a snapshot with its directories and returns its mounts. Adds nothing if it fails.
    pub(crate) fn create(
        &self,
        new: Creation,
        reservation: &Reservation,
        lowerdirs: &LowerDirs,
    ) -> Result<Vec<Mount>, SnapshotterError> {
        let (id, kind) = (reservation.id, new.kind);
        let mut made = false;
        let inserted = self.metadata.insert(
            NewSnapshot {
                id,
                name: &new.key,
                kind,
                parent: &new.parent,
                labels: new.labels,
                fallback: None,
                id_maps: None,
            },
            |parents| {
                let owner = self.directories.inherited_owner(parents)?;
                self.directories.create(id, kind == Kind::Active, owner)?;
                made = true;
                soci_faults::point("create-directory-made");
                Ok(())
            },
        );
        if inserted.is_err()
            && made
            && let Err(error) = self.directories.remove(id)
        {
            // The next sweep deletes it.
            tracing::warn!(%error, "cannot remove the directory of a failed snapshot");
        }
        let parents = inserted?;
        soci_faults::point("create-committed");
        Ok(self.mounts(kind, id, &parents, lowerdirs))
    }

    /// Adds a snapshot whose directories exist and returns its mounts.
    pub(crate) fn insert(
        &self,
        new: NewSnapshot<'_>,
        lowerdirs: &LowerDirs,
    ) -> Result<Vec<Mount>, SnapshotterError> {
        let (id, kind) = (new.id, new.kind);
        let parents = self.metadata.insert(new, |_| Ok(()))?;
        Ok(self.mounts(kind, id, &parents, lowerdirs))
    }

    /// Removes a snapshot from the metadata. The next sweep deletes its directory.
    pub(crate) fn remove(&self, key: &str) -> Result<Record, SnapshotterError> {
        let (record, _) = self.metadata.remove(key)?;
        self.comparisons.end(record.id);
        soci_faults::point("remove-forgotten");
        self.removed.notify_one();
        Ok(record)
    }

    /// Returns the mounts of a snapshot with these parents. Does not block.
    pub(crate) fn mounts(
        &self,
        kind: Kind,
        id: u64,
        parents: &[Link],
        lowerdirs: &LowerDirs,
    ) -> Vec<Mount> {
        let dirs: Vec<SnapshotDir> = parents.iter().map(|parent| lowerdirs.dir(parent)).collect();
        mounts(&self.directories, &self.overlay, kind, id, &dirs)
    }

    /// Returns the directories in which a snapshot sees its parents now.
    pub(crate) fn lowerdirs(&self, snapshot: &Snapshot) -> Result<LowerDirs, SnapshotterError> {
        let Snapshot { record, parents } = snapshot;
        let compared = LowerDirs::Compared {
            snapshot: record.id,
        };
        if let Some(maps) = record.id_maps()? {
            return Ok(LowerDirs::IdMapped {
                snapshot: record.id,
                maps,
            });
        }
        // Once made for a comparison, they stay: the snapshot may be mounted.
        let own = |parent: &Link| parent.lazy.is_some() && self.exists(compared.dir(parent));
        Ok(match parents.iter().any(own) {
            true => compared,
            false => LowerDirs::Shared,
        })
    }

    /// Whether a directory exists. Its `fs` is not accessed: it may be a lazy mount that is not
    /// served yet.
    pub(crate) fn exists(&self, dir: SnapshotDir) -> bool {
        self.directories.snapshot(dir).exists()
    }

    /// Whether anything is mounted in a directory.
    pub(crate) fn is_mounted(&self, dir: SnapshotDir) -> Result<bool, SnapshotterError> {
        let table = read_mountinfo()?;
        let path = self.directories.real_snapshot(dir);
        Ok(table.under(&path).next().is_some())
    }

    /// Whether an active snapshot is about to be compared with its parent: containerd makes the view
    /// of the parent first, then requests the mounts of the snapshot. Does not block.
    pub(crate) fn is_compared(&self, record: &Record) -> bool {
        record.kind() == Kind::Active && self.comparisons.involve(&record.info.parent)
    }
}
