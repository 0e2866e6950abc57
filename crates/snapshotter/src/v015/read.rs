//! Reading v0.15's snapshot metadata, a bbolt file of the layout that containerd's snapshotters
//! share.
//!
//! `v1` → `snapshots` → name → `id`, `kind`, `parent`, `labels`, `createdat`, `updatedat`, `inodes`,
//! `size`. (`v1` → `parents` is an index, which our database has in another form.)

use std::collections::HashSet;
use std::time::{SystemTime, UNIX_EPOCH};

use soci_bolt::{BoltError, Bucket, Entry, values};

use crate::api::v1::Kind;
use crate::labels::Labels;
use crate::metadata::{OldSnapshot, Usage};

/// The metadata of v0.15 cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OldMetadataError {
    /// The database cannot be read.
    #[error(transparent)]
    Database(#[from] BoltError),
    /// An entry is malformed.
    #[error("snapshot {name:?}: {reason}")]
    Snapshot {
        /// The snapshot.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// Reads all snapshots.
pub(super) fn snapshots(
    database: &soci_bolt::Database,
) -> Result<Vec<OldSnapshot>, OldMetadataError> {
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
            // Databases from before containerd recorded it have none.
            None => Ok(UNIX_EPOCH),
            Some(bytes) => {
                values::time(bytes).ok_or_else(|| wrong("one of its times is malformed"))
            }
        }
    };
    let number = |key: &str| -> Result<i64, OldMetadataError> {
        match fields.value(key.as_bytes())? {
            None => Ok(0),
            Some(bytes) => values::varint(bytes).ok_or_else(|| wrong("its usage is not a number")),
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
        _ => return Err(wrong("its kind is unknown")),
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
