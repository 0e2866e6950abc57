//! Importing the snapshot metadata of soci-snapshotter v0.15 in one transaction. Its database is
//! only read, and kept: it is the way back.
//!
//! An import is marked with the number of the old database's last transaction. If v0.15 has run
//! again since, that number is another, and everything is imported again.

mod read;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, unmount};

use crate::directories::read_mountinfo;
use crate::error::SnapshotterError;
use crate::file_error::FileError;
use crate::metadata::{ImportState, Metadata, OldSnapshot};

pub use read::OldMetadataError;

/// The name of v0.15's database in the snapshotter's directory.
const FILE_NAME: &str = "metadata.db";
/// The file system type of v0.15's mounts (and of ours).
const FUSE_TYPE: &str = "fuse.rawBridge";

/// The database of v0.15.
#[derive(Debug)]
struct OldDatabase {
    /// Number of its last transaction.
    transaction: u64,
    snapshots: Vec<OldSnapshot>,
    path: PathBuf,
}

/// Opens our metadata in `root`, and imports v0.15's if that is newer.
///
/// `snapshots` is the directory of the snapshots without symbolic links. A database of v0.15 that
/// cannot be read is an error before anything is changed.
pub(crate) fn open_metadata(root: &Path, snapshots: &Path) -> Result<Metadata, SnapshotterError> {
    let path = root.join("metadata.redb");
    if path.exists() {
        // The usual start: the old database did not change since it was imported.
        let metadata = Metadata::open(&path)?;
        let old = soci_bolt::Database::last_transaction(&root.join(FILE_NAME));
        if let (ImportState::Transaction(taken), Ok(found)) = (metadata.import_state()?, old)
            && taken == found
        {
            return Ok(metadata);
        }
    }
    let old = match OldDatabase::find(root) {
        // Not even an empty database of ours is created.
        Err(error) if !path.exists() => return Err(error),
        old => old,
    };
    let metadata = Metadata::open(&path)?;
    match (metadata.import_state()?, old) {
        (ImportState::Undecided, old) => match old? {
            Some(old) => import(&metadata, &old, snapshots)?,
            None => metadata.begin()?,
        },
        (ImportState::Transaction(taken), Ok(Some(old))) if taken != old.transaction => {
            tracing::warn!(
                path = %old.path.display(),
                "soci-snapshotter v0.15 has run again since its snapshots were taken over: taking them over again"
            );
            import(&metadata, &old, snapshots)?;
        }
        (ImportState::NotImported, Ok(Some(old))) => tracing::warn!(
            path = %old.path.display(),
            "ignoring the snapshot metadata of soci-snapshotter v0.15: an earlier version of this \
             program did not take it over"
        ),
        (_, Ok(_)) => {}
        (_, Err(error)) if error.is_in_use() => return Err(error),
        (_, Err(error)) => {
            tracing::warn!(error = %soci_errors::chain(&error), "cannot read the snapshot metadata of soci-snapshotter v0.15, which was taken over before");
        }
    }
    Ok(metadata)
}

fn import(
    metadata: &Metadata,
    old: &OldDatabase,
    snapshots: &Path,
) -> Result<(), SnapshotterError> {
    clear_mounts(snapshots)?;
    metadata.import(old.transaction, &old.snapshots)?;
    tracing::info!(
        path = %old.path.display(),
        snapshots = old.snapshots.len(),
        "took over the snapshots of soci-snapshotter v0.15; its database is kept and no longer used"
    );
    Ok(())
}

/// Unmounts the layers of a dead v0.15 (a live one would hold the lock of its database): nothing
/// below them can be read, and nothing may be mounted above them.
fn clear_mounts(snapshots: &Path) -> Result<(), SnapshotterError> {
    let table = read_mountinfo()?;
    let mut count = 0;
    // The last mounted first.
    for mount in table.under(snapshots).rev() {
        if mount.kind != OsStr::new(FUSE_TYPE) {
            continue;
        }
        let point: &Path = &mount.point;
        unmount(point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
            .map_err(|error| FileError::at("unmount", point)(error.into()))?;
        count += 1;
    }
    if count > 0 {
        tracing::info!(count, "unmounted the dead mounts of soci-snapshotter v0.15");
    }
    Ok(())
}

impl OldDatabase {
    /// Reads v0.15's database in the snapshotter's directory, if there is any.
    fn find(root: &Path) -> Result<Option<Self>, SnapshotterError> {
        let path = root.join(FILE_NAME);
        if !path.exists() {
            return Ok(None);
        }
        let failed = |source| SnapshotterError::OldMetadata {
            path: path.clone(),
            source: Box::new(source),
        };
        let database = soci_bolt::Database::open(&path).map_err(|source| failed(source.into()))?;
        Ok(Some(Self {
            transaction: database.transaction(),
            snapshots: read::snapshots(&database).map_err(failed)?,
            path: path.clone(),
        }))
    }
}
