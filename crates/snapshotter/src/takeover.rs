//! Taking over what soci-snapshotter v0.15 left: its snapshot metadata, a bbolt file of the layout
//! that containerd's snapshotters share, becomes ours in one transaction. The file itself is only
//! read, and kept: it is the way back.
//!
//! `v1` → `snapshots` → name → `id`, `kind`, `parent`, `labels`, `createdat`, `updatedat`, `inodes`,
//! `size`. (`v1` → `parents` is an index, which we have in another form.)
//!
//! What was taken over is marked with the number of the old database's last transaction. Should
//! v0.15 have run again since, that number is another, and what it left counts: everything is
//! taken over anew.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::mount::{UnmountFlags, unmount};
use soci_bolt::{BoltError, Bucket, Entry, values};

use crate::api::v1::Kind;
use crate::error::SnapshotterError;
use crate::labels::Labels;
use crate::metadata::{Metadata, TakenOver, Usage};

/// The name of v0.15's database in the snapshotter's directory.
const FILE_NAME: &str = "metadata.db";
/// The file system type of v0.15's mounts (and of ours).
const FUSE_TYPE: &str = "fuse.rawBridge";

/// The snapshots that v0.15 knew.
#[derive(Debug)]
pub(crate) struct OldSnapshots {
    /// The last transaction of the old database.
    pub(crate) transaction: u64,
    pub(crate) snapshots: Vec<OldSnapshot>,
    path: PathBuf,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OldSnapshot {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) parent: String,
    pub(crate) labels: Labels,
    pub(crate) created_at: SystemTime,
    pub(crate) updated_at: SystemTime,
    pub(crate) usage: Usage,
}

/// Opens our metadata in `root`, with what v0.15 left there if that is newer. `snapshots` is the
/// folder of the snapshots without symbolic links. A database of v0.15 that cannot be read stops this
/// before anything is changed.
pub(crate) fn open_metadata(root: &Path, snapshots: &Path) -> Result<Metadata, SnapshotterError> {
    let path = root.join("metadata.redb");
    if path.exists() {
        // The usual start: nothing happened to the old database since it was taken over.
        let metadata = Metadata::open(&path)?;
        let old = soci_bolt::Database::last_transaction(&root.join(FILE_NAME));
        if let (TakenOver::Transaction(taken), Ok(found)) = (metadata.taken_over()?, old)
            && taken == found
        {
            return Ok(metadata);
        }
    }
    let old = match OldSnapshots::find(root) {
        // Not even an empty database of ours is made.
        Err(error) if !path.exists() => return Err(error),
        old => old,
    };
    let metadata = Metadata::open(&path)?;
    match (metadata.taken_over()?, old) {
        (TakenOver::Undecided, old) => match old? {
            Some(old) => take_over(&metadata, &old, snapshots)?,
            None => metadata.begin()?,
        },
        (TakenOver::Transaction(taken), Ok(Some(old))) if taken != old.transaction => {
            tracing::warn!(
                path = %old.path.display(),
                "soci-snapshotter v0.15 has been at work here again: what it left is taken over anew"
            );
            take_over(&metadata, &old, snapshots)?;
        }
        (TakenOver::Nothing, Ok(Some(old))) => tracing::warn!(
            path = %old.path.display(),
            "found the snapshot metadata of soci-snapshotter v0.15 beside that of an earlier version \
             of this program, which did not take it over; it is left as it is"
        ),
        (_, Ok(_)) => {}
        (_, Err(error)) if error.is_in_use() => return Err(error),
        (_, Err(error)) => {
            tracing::warn!(%error, "the snapshot metadata that v0.15 left is not looked at again");
        }
    }
    Ok(metadata)
}

fn take_over(
    metadata: &Metadata,
    old: &OldSnapshots,
    snapshots: &Path,
) -> Result<(), SnapshotterError> {
    clear_mounts(snapshots)?;
    metadata.import(old)?;
    tracing::info!(
        path = %old.path.display(),
        snapshots = old.snapshots.len(),
        "took over the snapshots of soci-snapshotter v0.15; its database is kept and not used any more"
    );
    Ok(())
}

/// Takes down the mounts of a process that is dead (it would hold the lock of its database):
/// nothing below them can be looked at, and nothing may be mounted above them.
fn clear_mounts(snapshots: &Path) -> Result<(), SnapshotterError> {
    let failed = SnapshotterError::io("read", soci_mountinfo::PATH.as_ref());
    let table = soci_mountinfo::Table::read().map_err(failed)?;
    let mut count = 0;
    // Those that were mounted last first.
    for mount in table.under(snapshots).rev() {
        if mount.kind != OsStr::new(FUSE_TYPE) {
            continue;
        }
        let point: &Path = &mount.point;
        unmount(point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
            .map_err(|error| SnapshotterError::io("unmount", point)(error.into()))?;
        count += 1;
    }
    if count > 0 {
        tracing::info!(count, "took down the dead mounts of soci-snapshotter v0.15");
    }
    Ok(())
}

impl OldSnapshots {
    /// What v0.15 left in the snapshotter's directory, if anything.
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
            snapshots: snapshots(&database).map_err(failed)?,
            path: path.clone(),
        }))
    }
}

/// Why v0.15's metadata cannot be taken over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OldMetadataError {
    /// The database cannot be read.
    #[error(transparent)]
    Database(#[from] BoltError),
    /// An entry of it makes no sense.
    #[error("snapshot {name:?}: {reason}")]
    Snapshot {
        /// The snapshot.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

fn snapshots(database: &soci_bolt::Database) -> Result<Vec<OldSnapshot>, OldMetadataError> {
    let Some(version) = database.root().bucket(b"v1")? else {
        return Ok(Vec::new());
    };
    let Some(all) = version.bucket(b"snapshots")? else {
        return Ok(Vec::new());
    };
    let mut snapshots = Vec::new();
    let mut ids = HashSet::new();
    for entry in all.entries() {
        let (name, Entry::Bucket(fields)) = entry? else {
            continue;
        };
        let snapshot = snapshot(name, fields)?;
        if !ids.insert(snapshot.id) {
            return Err(OldMetadataError::Snapshot {
                name: snapshot.name,
                reason: "another snapshot has the same id",
            });
        }
        snapshots.push(snapshot);
    }
    let committed: HashSet<&str> = snapshots
        .iter()
        .filter(|snapshot| snapshot.kind == Kind::Committed)
        .map(|snapshot| snapshot.name.as_str())
        .collect();
    match snapshots
        .iter()
        .find(|one| !one.parent.is_empty() && !committed.contains(one.parent.as_str()))
    {
        Some(orphan) => Err(OldMetadataError::Snapshot {
            name: orphan.name.clone(),
            reason: "its parent does not exist, or is not committed",
        }),
        None => Ok(snapshots),
    }
}

fn snapshot(name: &[u8], fields: Bucket<'_>) -> Result<OldSnapshot, OldMetadataError> {
    let wrong = |reason| OldMetadataError::Snapshot {
        name: String::from_utf8_lossy(name).into_owned(),
        reason,
    };
    let text = |bytes: &[u8]| {
        std::str::from_utf8(bytes)
            .map(str::to_owned)
            .map_err(|_| wrong("it holds text that is not UTF-8"))
    };
    let time = |key: &str| -> Result<SystemTime, OldMetadataError> {
        match fields.value(key.as_bytes())? {
            // As of databases from before containerd recorded it.
            None => Ok(UNIX_EPOCH),
            Some(bytes) => values::time(bytes).ok_or_else(|| wrong("one of its times is no time")),
        }
    };
    let number = |key: &str| -> Result<i64, OldMetadataError> {
        match fields.value(key.as_bytes())? {
            None => Ok(0),
            Some(bytes) => values::varint(bytes).ok_or_else(|| wrong("its usage is no number")),
        }
    };
    let mut labels = Labels::new();
    if let Some(bucket) = fields.bucket(b"labels")? {
        for label in bucket.entries() {
            if let (key, Entry::Value(value)) = label? {
                labels.insert(text(key)?, text(value)?);
            }
        }
    }
    // containerd's numbers, which are not those of its API.
    let kind = match fields.value(b"kind")? {
        Some([1]) => Kind::View,
        Some([2]) => Kind::Active,
        Some([3]) => Kind::Committed,
        _ => return Err(wrong("its kind is none that exists")),
    };
    Ok(OldSnapshot {
        id: fields
            .value(b"id")?
            .and_then(values::uvarint)
            .filter(|id| *id != 0)
            .ok_or_else(|| wrong("it has no id"))?,
        name: text(name)?,
        kind,
        parent: text(fields.value(b"parent")?.unwrap_or_default())?,
        labels,
        created_at: time("createdat")?,
        updated_at: time("updatedat")?,
        usage: Usage {
            size: number("size")?,
            inodes: number("inodes")?,
        },
    })
}

#[cfg(test)]
mod tests;
