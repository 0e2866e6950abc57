//! Changing: new snapshots, commits, removals, labels. Each is one transaction.

use std::time::SystemTime;

use prost::Message;
use redb::ReadableTable;

use super::lookup::{Link, chain, find_target, get};
use super::record::{Fallback, IdMapsRecord, LazyRecord, Record, Usage};
use super::{Attempt, FIRST_ID_KEY, Metadata, NEXT_ID_KEY, Writer};
use crate::api::v1::{Info, Kind};
use crate::error::SnapshotterError;
use crate::labels::{self, Labels};
use soci_layer::IdMaps;

/// An active snapshot or a view to be.
#[derive(Debug)]
pub(crate) struct NewSnapshot<'a> {
    pub(crate) id: u64,
    pub(crate) name: &'a str,
    pub(crate) kind: Kind,
    pub(crate) parent: &'a str,
    pub(crate) labels: Labels,
    pub(crate) fallback: Option<Fallback>,
    /// Its parents are seen with these ids, each in a directory of its own.
    pub(crate) id_maps: Option<IdMaps>,
}

/// A layer that we have made, to be committed without ever having been active.
#[derive(Debug)]
pub(crate) struct LayerCommit<'a> {
    pub(crate) id: u64,
    pub(crate) target: &'a str,
    pub(crate) parent: &'a str,
    pub(crate) labels: Labels,
    pub(crate) made: MadeLayer,
}

/// How a layer was made.
#[derive(Debug)]
pub(crate) enum MadeLayer {
    /// Mounted lazily.
    Lazy(LazyRecord),
    /// Fetched and unpacked here, because it could not be lazy.
    Unpacked { usage: Usage, why: Fallback },
}

/// What became of a [`LayerCommit`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LayerOutcome {
    /// Committed under this name.
    Committed(String),
    /// Somebody else had committed the target on the same parent, under this name.
    Exists(String),
}

/// An active snapshot to be committed.
#[derive(Debug)]
pub(crate) struct Commit<'a> {
    /// The active snapshot must still be the one that was measured.
    pub(crate) id: u64,
    pub(crate) key: &'a str,
    pub(crate) name: &'a str,
    pub(crate) labels: Labels,
    pub(crate) usage: Usage,
}

impl Metadata {
    /// Called at each open with an id above all directories that exist. A new database starts
    /// there. Gives the first id that this database ever used.
    pub(crate) fn claim_ids(&self, from: u64) -> Result<u64, SnapshotterError> {
        self.write(|tables| {
            let first = tables.meta.get(FIRST_ID_KEY)?.map(|first| first.value());
            let first = match first {
                Some(first) => first,
                None => {
                    tables.meta.insert(FIRST_ID_KEY, from)?;
                    from
                }
            };
            tables.use_id(from.saturating_sub(1))?;
            Ok(first)
        })
    }

    /// Adds an active snapshot or a view. `before_commit` is given its parents, nearest first; if
    /// it fails, nothing is added.
    pub(crate) fn insert(
        &self,
        new: NewSnapshot<'_>,
        before_commit: impl FnOnce(&[Link]) -> Result<(), SnapshotterError>,
    ) -> Result<Vec<Link>, SnapshotterError> {
        self.write(|tables| {
            let parents = chain(&tables.snapshots, &tables.lazy, new.parent)?;
            if tables.snapshots.get(new.name)?.is_some() {
                let name = new.name.to_owned();
                return Err(SnapshotterError::AlreadyExists { name }.into());
            }
            before_commit(&parents)?;
            let record = Record {
                id: new.id,
                info: info(new.name, new.kind, new.parent, new.labels),
                fallback: new.fallback,
                id_maps: new.id_maps.as_ref().map(IdMapsRecord::from),
                ..Record::default()
            };
            tables.use_id(new.id)?;
            tables.put(&record, &parents)?;
            Ok(parents)
        })
    }

    /// Adds a layer under the name of its target.
    ///
    /// If that name is taken by a snapshot on *another* parent (another namespace unpacked a
    /// layer below in its own way), the layer gets a name of its own: containerd finds it by its
    /// label and parent, not by its name.
    pub(crate) fn insert_layer(
        &self,
        new: LayerCommit<'_>,
    ) -> Result<LayerOutcome, SnapshotterError> {
        self.write(|tables| {
            let parents = chain(&tables.snapshots, &tables.lazy, new.parent)?;
            let exists = find_target(&tables.targets, &tables.snapshots, new.target, new.parent)?;
            if let Some(name) = exists {
                return Ok(LayerOutcome::Exists(name));
            }
            let name = match tables.snapshots.get(new.target)? {
                None => new.target.to_owned(),
                Some(_) => format!("{}#{}", new.target, new.id),
            };
            let mut record = Record {
                id: new.id,
                info: info(&name, Kind::Committed, new.parent, new.labels),
                ..Record::default()
            };
            match new.made {
                MadeLayer::Lazy(lazy) => {
                    let lazy = lazy.encode_to_vec();
                    tables.lazy.insert(new.id, lazy.as_slice())?;
                }
                MadeLayer::Unpacked { usage, why } => {
                    record.usage = usage;
                    record.fallback = Some(why);
                    record.unpacked = true;
                }
            }
            tables.use_id(new.id)?;
            tables.put(&record, &parents)?;
            Ok(LayerOutcome::Committed(name))
        })
    }

    /// Turns an active snapshot into a committed one. Its labels are replaced, not merged.
    pub(crate) fn commit(&self, commit: Commit<'_>) -> Result<(), SnapshotterError> {
        self.write(|tables| {
            let old = get(&tables.snapshots, commit.key)?;
            if tables.snapshots.get(commit.name)?.is_some() {
                let name = commit.name.to_owned();
                return Err(SnapshotterError::AlreadyExists { name }.into());
            }
            if old.kind() != Kind::Active {
                let name = commit.key.to_owned();
                return Err(SnapshotterError::NotActive { name }.into());
            }
            if old.id != commit.id {
                // Removed, and made anew by another client, while the old one was measured.
                let name = commit.key.to_owned();
                return Err(SnapshotterError::NotFound { name }.into());
            }
            let parents = chain(&tables.snapshots, &tables.lazy, &old.info.parent)?;
            tables.delete(&old, &parents)?;
            let new = Record {
                info: info(
                    commit.name,
                    Kind::Committed,
                    &old.info.parent,
                    commit.labels,
                ),
                usage: commit.usage,
                ..old
            };
            tables.put(&new, &parents)
        })
    }

    /// Forgets a snapshot without children. Gives its record, and whether it was lazy.
    pub(crate) fn remove(&self, name: &str) -> Result<(Record, bool), SnapshotterError> {
        self.write(|tables| {
            let record = get(&tables.snapshots, name)?;
            if let Some(child) = tables.first_child(record.id)? {
                let name = name.to_owned();
                return Err(SnapshotterError::HasChildren { name, child }.into());
            }
            let parents = match chain(&tables.snapshots, &tables.lazy, &record.info.parent) {
                Ok(parents) => parents,
                Err(super::Failure::Snapshotter(_)) => Vec::new(),
                Err(failure) => return Err(failure),
            };
            tables.delete(&record, &parents)?;
            let lazy = tables.lazy.remove(record.id)?.is_some();
            Ok((record, lazy))
        })
    }

    /// Changes labels: those named by `mask` (`labels`, `labels.KEY`), or all if it is empty.
    pub(crate) fn update(
        &self,
        name: &str,
        labels: &Labels,
        mask: &[String],
    ) -> Result<Info, SnapshotterError> {
        self.write(|tables| {
            let mut record = get(&tables.snapshots, name)?;
            let old_target = record.label(labels::TARGET).map(str::to_owned);
            let changed = &mut record.info.labels;
            if mask.is_empty() {
                changed.clone_from(labels);
            }
            for path in mask {
                match path.strip_prefix("labels.") {
                    Some(key) => match labels.get(key) {
                        Some(value) => {
                            changed.insert(key.to_owned(), value.clone());
                        }
                        None => {
                            changed.remove(key);
                        }
                    },
                    None if path == "labels" => changed.clone_from(labels),
                    None => {
                        return Err(SnapshotterError::ImmutableField {
                            path: path.clone(),
                            name: name.to_owned(),
                        }
                        .into());
                    }
                }
            }
            record.info.updated_at = Some(SystemTime::now().into());
            if let Some(target) = old_target {
                tables.targets.remove((target.as_str(), name))?;
            }
            tables.put(&record, &[])?;
            Ok(record.info)
        })
    }
}

impl Writer<'_> {
    /// Marks an id as given away for good.
    fn use_id(&mut self, id: u64) -> Attempt<()> {
        let next = self.meta.get(NEXT_ID_KEY)?.map_or(1, |next| next.value());
        self.meta
            .insert(NEXT_ID_KEY, next.max(id.saturating_add(1)))?;
        Ok(())
    }

    /// Writes a record and its entries in the indexes.
    pub(super) fn put(&mut self, record: &Record, parents: &[Link]) -> Attempt<()> {
        let name = record.info.name.as_str();
        self.snapshots
            .insert(name, record.encode_to_vec().as_slice())?;
        if let Some(parent) = parents.first() {
            self.children.insert((parent.id, record.id), name)?;
        }
        if let Some(target) = record.label(labels::TARGET) {
            self.targets.insert((target, name), ())?;
        }
        Ok(())
    }

    /// Removes a record and its entries in the indexes.
    fn delete(&mut self, record: &Record, parents: &[Link]) -> Attempt<()> {
        let name = record.info.name.as_str();
        self.snapshots.remove(name)?;
        if let Some(parent) = parents.first() {
            self.children.remove((parent.id, record.id))?;
        }
        if let Some(target) = record.label(labels::TARGET) {
            self.targets.remove((target, name))?;
        }
        Ok(())
    }

    fn first_child(&self, id: u64) -> Attempt<Option<String>> {
        let mut children = self.children.range((id, 0)..=(id, u64::MAX))?;
        match children.next() {
            Some(child) => Ok(Some(child?.1.value().to_owned())),
            None => Ok(None),
        }
    }
}

fn info(name: &str, kind: Kind, parent: &str, labels: Labels) -> Info {
    let now = SystemTime::now();
    Info {
        name: name.to_owned(),
        parent: parent.to_owned(),
        kind: kind.into(),
        created_at: Some(now.into()),
        updated_at: Some(now.into()),
        labels,
    }
}
