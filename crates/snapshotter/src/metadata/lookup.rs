//! Reading: one snapshot, the chain of its parents, the lazy ones, the ids in use.

use std::collections::HashSet;

use redb::{ReadableTable, ReadableTableMetadata};

use super::record::{LazyRecord, Record, decode};
use super::{Attempt, Metadata, NEXT_ID_KEY, Reader};
use crate::api::v1::Kind;
use crate::error::SnapshotterError;
use crate::labels;

/// Longer chains are damage: overlayfs allows 500 lower directories.
const MAX_CHAIN: usize = 10_000;

/// A snapshot with the chain of its parents.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) record: Record,
    /// Nearest parent first.
    pub(crate) parents: Vec<Link>,
}

/// One of the parents of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) id: u64,
    pub(crate) name: String,
    /// Set if its `fs` is a mount of ours.
    pub(crate) lazy: Option<LazyRecord>,
}

/// The table of snapshots in a transaction of either kind.
pub(super) trait Snapshots: ReadableTable<&'static str, &'static [u8]> {}
impl<T: ReadableTable<&'static str, &'static [u8]>> Snapshots for T {}

/// The table of lazy snapshots in a transaction of either kind.
pub(super) trait Lazies: ReadableTable<u64, &'static [u8]> {}
impl<T: ReadableTable<u64, &'static [u8]>> Lazies for T {}

pub(super) fn find(snapshots: &impl Snapshots, name: &str) -> Attempt<Option<Record>> {
    match snapshots.get(name)? {
        Some(bytes) => Ok(Some(decode(name, bytes.value())?)),
        None => Ok(None),
    }
}

pub(super) fn get(snapshots: &impl Snapshots, name: &str) -> Attempt<Record> {
    find(snapshots, name)?.ok_or_else(|| {
        SnapshotterError::NotFound {
            name: name.to_owned(),
        }
        .into()
    })
}

/// The parent and its parents, nearest first; none if `parent` is empty. It must be committed.
pub(super) fn chain(
    snapshots: &impl Snapshots,
    lazy: &impl Lazies,
    parent: &str,
) -> Attempt<Vec<Link>> {
    let mut chain: Vec<Link> = Vec::new();
    let mut name = parent.to_owned();
    while !name.is_empty() {
        let Some(record) = find(snapshots, &name)? else {
            return Err(SnapshotterError::ParentNotFound { parent: name }.into());
        };
        if record.kind() != Kind::Committed {
            return Err(SnapshotterError::ParentNotCommitted { parent: name }.into());
        }
        if chain.len() >= MAX_CHAIN {
            let reason = "its parents have no end".to_owned();
            return Err(SnapshotterError::Corrupt { name, reason }.into());
        }
        let lazy = match lazy.get(record.id)? {
            Some(bytes) => Some(decode(&name, bytes.value())?),
            None => None,
        };
        chain.push(Link {
            id: record.id,
            name: std::mem::replace(&mut name, record.info.parent),
            lazy,
        });
    }
    Ok(chain)
}

/// The committed snapshot that was made for this target on this parent.
pub(super) fn find_target(
    targets: &impl ReadableTable<(&'static str, &'static str), ()>,
    snapshots: &impl Snapshots,
    target: &str,
    parent: &str,
) -> Attempt<Option<String>> {
    for entry in targets.range((target, "")..)? {
        let (key, ()) = entry.map(|(key, value)| (key, value.value()))?;
        let (found, name) = key.value();
        if found != target {
            break;
        }
        let record = get(snapshots, name)?;
        if record.kind() == Kind::Committed && record.info.parent == parent {
            return Ok(Some(name.to_owned()));
        }
    }
    Ok(None)
}

impl Metadata {
    /// One snapshot.
    pub(crate) fn get(&self, name: &str) -> Result<Record, SnapshotterError> {
        self.read(|tables| get(&tables.snapshots, name))
    }

    /// One snapshot and its parents.
    pub(crate) fn snapshot(&self, name: &str) -> Result<Snapshot, SnapshotterError> {
        self.read(|tables| {
            let record = get(&tables.snapshots, name)?;
            let parents = chain(&tables.snapshots, &tables.lazy, &record.info.parent)?;
            Ok(Snapshot { record, parents })
        })
    }

    /// Whether the name is taken; the chain of the parents to be otherwise.
    pub(crate) fn before_insert(
        &self,
        name: &str,
        parent: &str,
    ) -> Result<Vec<Link>, SnapshotterError> {
        self.read(|tables| {
            let chain = chain(&tables.snapshots, &tables.lazy, parent)?;
            if tables.snapshots.get(name)?.is_some() {
                let name = name.to_owned();
                return Err(SnapshotterError::AlreadyExists { name }.into());
            }
            Ok(chain)
        })
    }

    /// The committed snapshot that was made for this target on this parent.
    pub(crate) fn target(
        &self,
        target: &str,
        parent: &str,
    ) -> Result<Option<String>, SnapshotterError> {
        self.read(|tables| find_target(&tables.targets, &tables.snapshots, target, parent))
    }

    /// All lazy snapshots: id, name, and what is needed to mount them again.
    pub(crate) fn lazy(&self) -> Result<Vec<(u64, String, LazyRecord)>, SnapshotterError> {
        self.read(|tables| {
            if tables.lazy.is_empty()? {
                return Ok(Vec::new());
            }
            let mut found = Vec::new();
            each(tables, |name, record| {
                if let Some(bytes) = tables.lazy.get(record.id)? {
                    found.push((record.id, name.to_owned(), decode(name, bytes.value())?));
                }
                Ok(())
            })?;
            Ok(found)
        })
    }

    /// The snapshots with these ids, and those whose parents are seen with other owners.
    pub(crate) fn apart(&self, ids: &HashSet<u64>) -> Result<Vec<Snapshot>, SnapshotterError> {
        self.read(|tables| {
            let mut found = Vec::new();
            each(tables, |_, record| {
                if record.id_maps.is_some() || ids.contains(&record.id) {
                    let parents = chain(&tables.snapshots, &tables.lazy, &record.info.parent)?;
                    found.push(Snapshot { record, parents });
                }
                Ok(())
            })?;
            Ok(found)
        })
    }

    /// Every snapshot that is an image layer (it has a target), and whether it is lazy.
    pub(crate) fn layers(&self) -> Result<Vec<(Record, bool)>, SnapshotterError> {
        self.read(|tables| {
            let mut found = Vec::new();
            each(tables, |_, record| {
                let lazy = tables.lazy.get(record.id)?.is_some();
                if lazy || record.fallback.is_some() || record.label(labels::TARGET).is_some() {
                    found.push((record, lazy));
                }
                Ok(())
            })?;
            Ok(found)
        })
    }

    /// The active snapshots and views, each with the ids of its parents.
    pub(crate) fn mountable(&self) -> Result<Vec<(Record, Vec<u64>)>, SnapshotterError> {
        self.read(|tables| {
            let mut found = Vec::new();
            each(tables, |_, record| {
                if matches!(record.kind(), Kind::Active | Kind::View) {
                    let parents = chain(&tables.snapshots, &tables.lazy, &record.info.parent)?;
                    found.push((record, parents.into_iter().map(|link| link.id).collect()));
                }
                Ok(())
            })?;
            Ok(found)
        })
    }

    /// The ids of all snapshots.
    pub(crate) fn ids(&self) -> Result<HashSet<u64>, SnapshotterError> {
        self.read(|tables| {
            let mut ids = HashSet::new();
            each(tables, |_, record| {
                ids.insert(record.id);
                Ok(())
            })?;
            Ok(ids)
        })
    }

    /// The lowest id that no snapshot ever had.
    pub(crate) fn next_id(&self) -> Result<u64, SnapshotterError> {
        self.read(|tables| {
            let next = tables.meta.get(NEXT_ID_KEY)?;
            Ok(next.map_or(1, |next| next.value()))
        })
    }
}

fn each(tables: &Reader, mut visit: impl FnMut(&str, Record) -> Attempt<()>) -> Attempt<()> {
    for entry in tables.snapshots.iter()? {
        let (name, bytes) = entry?;
        let name = name.value();
        visit(name, decode(name, bytes.value())?)?;
    }
    Ok(())
}
