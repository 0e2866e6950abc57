//! Changes: new snapshots, commits, removals, labels, imports. Each is one transaction.

use std::time::SystemTime;

use prost::Message;
use redb::ReadableTable;

use super::Metadata;
use super::error::MetadataError;
use super::import::{OldSnapshot, replace_all};
use super::record::{Fallback, IdMapsRecord, LazyRecord, Link, Record, Usage};
use super::search::{chain, find_target, get};
use super::tables::{FIRST_ID_KEY, Failure};
use crate::api::v1::{Info, Kind};
use crate::file_error::FileError;
use crate::labels::{self, Labels};
use soci_layer::{IdMaps, MountedInfo};

/// An active snapshot or a view to add.
#[derive(Debug)]
pub(crate) struct NewSnapshot<'a> {
    pub(crate) id: u64,
    pub(crate) name: &'a str,
    pub(crate) kind: Kind,
    pub(crate) parent: &'a str,
    pub(crate) labels: Labels,
    pub(crate) fallback: Option<Fallback>,
    /// Set if its parents are shown with these ids, each in a directory of its own.
    pub(crate) id_maps: Option<IdMaps>,
}

/// A layer that the snapshotter mounted or unpacked, to be added as a committed snapshot.
#[derive(Debug)]
pub(crate) struct LayerCommit<'a> {
    pub(crate) id: u64,
    pub(crate) target: &'a str,
    pub(crate) parent: &'a str,
    pub(crate) labels: Labels,
    pub(crate) made: NewLayer,
}

/// How a new layer is provided.
#[derive(Debug)]
pub(crate) enum NewLayer {
    /// Mounted lazily.
    Lazy(LazyRecord),
    /// Unpacked by the snapshotter, because it could not be lazy.
    Unpacked { usage: Usage, why: Fallback },
}

/// The outcome of a [`LayerCommit`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LayerOutcome {
    /// Committed under this name.
    Committed(String),
    /// Another client had committed the target on the same parent, under this name.
    Exists(String),
}

/// An active snapshot to commit.
#[derive(Debug)]
pub(crate) struct Commit<'a> {
    /// Id of the measured snapshot; the active one must still have it.
    pub(crate) id: u64,
    pub(crate) key: &'a str,
    pub(crate) name: &'a str,
    /// The parent that the client names, or empty: that of the active snapshot.
    pub(crate) parent: &'a str,
    pub(crate) labels: Labels,
    pub(crate) usage: Usage,
}

impl Metadata {
    /// Marks all ids below `from` as used, and returns the first id that this database ever used.
    ///
    /// Called at each open with an id above all existing directories. A new database starts there.
    pub(crate) fn claim_ids(&self, from: u64) -> Result<u64, MetadataError> {
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

    /// Adds an active snapshot or a view, and returns its parents, nearest first.
    ///
    /// `before_commit` gets the parents. If it fails, nothing is added.
    pub(crate) fn insert(
        &self,
        new: NewSnapshot<'_>,
        before_commit: impl FnOnce(&[Link]) -> Result<(), FileError>,
    ) -> Result<Vec<Link>, MetadataError> {
        self.write(|tables| {
            let parents = chain(&tables.snapshots, &tables.lazy, new.parent)?;
            if tables.snapshots.get(new.name)?.is_some() {
                let name = new.name.to_owned();
                return Err(MetadataError::AlreadyExists { name }.into());
            }
            before_commit(&parents).map_err(MetadataError::Directory)?;
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
    pub(crate) fn insert_layer(&self, new: LayerCommit<'_>) -> Result<LayerOutcome, MetadataError> {
        self.write(|tables| {
            let parents = chain(&tables.snapshots, &tables.lazy, new.parent)?;
            let fits = |record: &Record| record.info.parent == new.parent;
            let exists = find_target(&tables.targets, &tables.snapshots, new.target, fits)?;
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
                NewLayer::Lazy(lazy) => {
                    let lazy = lazy.encode_to_vec();
                    tables.lazy.insert(new.id, lazy.as_slice())?;
                }
                NewLayer::Unpacked { usage, why } => {
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
    pub(crate) fn commit(&self, commit: Commit<'_>) -> Result<(), MetadataError> {
        self.write(|tables| {
            let old = get(&tables.snapshots, commit.key)?;
            if tables.snapshots.get(commit.name)?.is_some() {
                let name = commit.name.to_owned();
                return Err(MetadataError::AlreadyExists { name }.into());
            }
            if old.kind() != Kind::Active {
                let name = commit.key.to_owned();
                return Err(MetadataError::NotActive { name }.into());
            }
            if old.id != commit.id {
                // Another client removed and prepared it again while the old one was measured.
                let name = commit.key.to_owned();
                return Err(MetadataError::NotFound { name }.into());
            }
            let prepared = old.info.parent.clone();
            let parent = match (prepared.as_str(), commit.parent) {
                (prepared, "") => prepared,
                ("", named) => named,
                (prepared, named) if prepared == named => prepared,
                (prepared, named) => {
                    return Err(MetadataError::ParentDiffers {
                        name: commit.key.to_owned(),
                        prepared: prepared.to_owned(),
                        named: named.to_owned(),
                    }
                    .into());
                }
            };
            let of_active = chain(&tables.snapshots, &tables.lazy, &prepared)?;
            let parents = chain(&tables.snapshots, &tables.lazy, parent)?;
            tables.delete(&old, &of_active)?;
            let new = Record {
                info: info(commit.name, Kind::Committed, parent, commit.labels),
                usage: commit.usage,
                ..old
            };
            tables.put(&new, &parents)
        })
    }

    /// Removes a snapshot without children, and returns its record and whether it was lazy.
    pub(crate) fn remove(&self, name: &str) -> Result<(Record, bool), MetadataError> {
        self.write(|tables| {
            let record = get(&tables.snapshots, name)?;
            if let Some(child) = tables.first_child(record.id)? {
                let name = name.to_owned();
                return Err(MetadataError::HasChildren { name, child }.into());
            }
            let parents = match chain(&tables.snapshots, &tables.lazy, &record.info.parent) {
                Ok(parents) => parents,
                Err(Failure::Refused(_)) => Vec::new(),
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
    ) -> Result<Info, MetadataError> {
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
                        return Err(MetadataError::ImmutableField {
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

    /// Replaces all entries by these snapshots, which v0.15 had after `transaction`.
    pub(crate) fn import(
        &self,
        transaction: u64,
        snapshots: &[OldSnapshot],
    ) -> Result<(), MetadataError> {
        self.write(|tables| replace_all(tables, transaction, snapshots))
    }

    /// Records the attributes of the root of a lazy layer, which v0.15 did not record.
    pub(crate) fn set_lazy_root(
        &self,
        id: u64,
        lazy: &LazyRecord,
        root: MountedInfo,
    ) -> Result<(), MetadataError> {
        let changed = LazyRecord::new(lazy.namespace.clone(), lazy.labels.clone(), root);
        if changed == *lazy {
            return Ok(());
        }
        self.write(|tables| {
            // It may have been removed in the meantime.
            if tables.lazy.get(id)?.is_some() {
                tables.lazy.insert(id, changed.encode_to_vec().as_slice())?;
            }
            Ok(())
        })
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
