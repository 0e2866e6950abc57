//! Queries: one snapshot, the chain of its parents, the lazy snapshots, the used ids.

use std::collections::HashSet;

use prost::bytes::Bytes;
use redb::{ReadableTable, ReadableTableMetadata};

use super::Metadata;
use super::error::MetadataError;
use super::list::list;
use super::record::{LazyRecord, Link, Record, decode};
use super::search::{chain, find_target, get};
use super::tables::{Attempt, IMPORTED_KEY, NEXT_ID_KEY, Reader};
use crate::api::v1::Kind;
use crate::filter::Filters;
use crate::labels;

/// A snapshot with the chain of its parents.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) record: Record,
    /// The chain of parents, nearest first.
    pub(crate) parents: Vec<Link>,
}

/// What is used of the committed snapshots, and what they take.
#[derive(Debug, Clone, Default)]
pub(crate) struct Uses {
    /// Ids of the lazy snapshots below active ones and views.
    pub(crate) lazy: HashSet<u64>,
    /// Allocated bytes of those that are not lazy.
    pub(crate) unpacked: u64,
}

/// What the database records about an import from v0.15's database beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ImportState {
    /// The database is empty: nothing has been decided yet.
    Undecided,
    /// The database was created without an import.
    NotImported,
    /// The database holds what the older one held after this transaction.
    Transaction(u64),
}

impl Metadata {
    /// Returns what was imported from v0.15's database.
    pub(crate) fn import_state(&self) -> Result<ImportState, MetadataError> {
        if self.is_new()? {
            return Ok(ImportState::Undecided);
        }
        self.read(|tables| {
            let imported = tables.meta.get(IMPORTED_KEY)?;
            Ok(imported.map_or(ImportState::NotImported, |transaction| {
                ImportState::Transaction(transaction.value())
            }))
        })
    }

    /// Passes every snapshot that the filters accept to `visit`, encoded as
    /// [`Info`](crate::api::v1::Info), in the order of the names, until that returns false.
    pub(crate) fn list(
        &self,
        filters: &Filters,
        visit: impl FnMut(Bytes) -> bool,
    ) -> Result<(), MetadataError> {
        self.read(|tables| list(tables, filters, visit))
    }

    /// Returns one snapshot.
    pub(crate) fn get(&self, name: &str) -> Result<Record, MetadataError> {
        self.read(|tables| get(&tables.snapshots, name))
    }

    /// Returns one snapshot and its parents.
    pub(crate) fn snapshot(&self, name: &str) -> Result<Snapshot, MetadataError> {
        self.read(|tables| {
            let record = get(&tables.snapshots, name)?;
            let parents = chain(&tables.snapshots, &tables.lazy, &record.info.parent)?;
            Ok(Snapshot { record, parents })
        })
    }

    /// Returns the parents of a new snapshot, nearest first. A name that is taken is an error.
    pub(crate) fn before_insert(
        &self,
        name: &str,
        parent: &str,
    ) -> Result<Vec<Link>, MetadataError> {
        self.read(|tables| {
            let chain = chain(&tables.snapshots, &tables.lazy, parent)?;
            if tables.snapshots.get(name)?.is_some() {
                let name = name.to_owned();
                return Err(MetadataError::AlreadyExists { name }.into());
            }
            Ok(chain)
        })
    }

    /// Returns the name of the committed snapshot for this target on this parent.
    pub(crate) fn target(
        &self,
        target: &str,
        parent: &str,
    ) -> Result<Option<String>, MetadataError> {
        let fits = |record: &Record| record.info.parent == parent;
        self.read(|tables| find_target(&tables.targets, &tables.snapshots, target, fits))
    }

    /// Whether a snapshot is committed for this target, on any parent.
    pub(crate) fn has_target(&self, target: &str) -> Result<bool, MetadataError> {
        let any = |_: &Record| true;
        self.read(|tables| find_target(&tables.targets, &tables.snapshots, target, any))
            .map(|found| found.is_some())
    }

    /// Lists all lazy snapshots, with what is needed to mount them again.
    pub(crate) fn lazy(&self) -> Result<Vec<(Record, LazyRecord)>, MetadataError> {
        self.read(|tables| {
            if tables.lazy.is_empty()? {
                return Ok(Vec::new());
            }
            let mut found = Vec::new();
            each(tables, |name, record| {
                if let Some(bytes) = tables.lazy.get(record.id)? {
                    let lazy = decode(name, bytes.value())?;
                    found.push((record, lazy));
                }
                Ok(())
            })?;
            Ok(found)
        })
    }

    /// Returns the snapshots with these ids, and those whose parents are shown with other owners.
    pub(crate) fn with_own_lowerdirs(
        &self,
        ids: &HashSet<u64>,
    ) -> Result<Vec<Snapshot>, MetadataError> {
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

    /// Lists the snapshots that are image layers (they have a target), and whether each is lazy.
    pub(crate) fn layers(&self) -> Result<Vec<(Record, bool)>, MetadataError> {
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

    /// Lists the active snapshots and views, each with the ids of its parents.
    pub(crate) fn mountable(&self) -> Result<Vec<(Record, Vec<u64>)>, MetadataError> {
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

    /// Returns what is used of the committed snapshots, and what they take.
    pub(crate) fn uses(&self) -> Result<Uses, MetadataError> {
        self.read(|tables| {
            let mut uses = Uses::default();
            each(tables, |_, record| {
                if matches!(record.kind(), Kind::Active | Kind::View) {
                    let parents = chain(&tables.snapshots, &tables.lazy, &record.info.parent)?;
                    let lazy = parents.into_iter().filter(|parent| parent.lazy.is_some());
                    uses.lazy.extend(lazy.map(|parent| parent.id));
                } else if tables.lazy.get(record.id)?.is_none() {
                    let size = u64::try_from(record.usage.size).unwrap_or(0);
                    uses.unpacked = uses.unpacked.saturating_add(size);
                }
                Ok(())
            })?;
            Ok(uses)
        })
    }

    /// Returns the ids of all snapshots.
    pub(crate) fn ids(&self) -> Result<HashSet<u64>, MetadataError> {
        self.read(|tables| {
            let mut ids = HashSet::new();
            each(tables, |_, record| {
                ids.insert(record.id);
                Ok(())
            })?;
            Ok(ids)
        })
    }

    /// Returns the lowest id that no snapshot ever had.
    pub(crate) fn next_id(&self) -> Result<u64, MetadataError> {
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
