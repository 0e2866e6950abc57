//! Taking over the snapshots of v0.15, in one transaction; and the mark that says what was.

use std::collections::HashMap;

use prost::Message;
use redb::ReadableTable;

use super::lookup::Link;
use super::record::{IdMapsRecord, LazyRecord, Record};
use super::{FIRST_ID_KEY, Metadata, NEXT_ID_KEY, SCHEMA, SCHEMA_KEY};
use crate::api::v1::{Info, Kind};
use crate::error::SnapshotterError;
use crate::labels;
use crate::takeover::{OldSnapshot, OldSnapshots};
use soci_layer::MountedInfo;

/// The last transaction of the database of v0.15 that was taken over.
const TAKEN_OVER_KEY: &str = "taken_over";
/// The namespace of a lazy snapshot that names none.
const DEFAULT_NAMESPACE: &str = "default";

/// What our database says of an older one beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TakenOver {
    /// Our database is empty: nothing has been decided yet.
    Undecided,
    /// It was made without an older one.
    Nothing,
    /// It holds what the older one held after this transaction.
    Transaction(u64),
}

impl Metadata {
    /// What was taken over.
    pub(crate) fn taken_over(&self) -> Result<TakenOver, SnapshotterError> {
        if self.is_new()? {
            return Ok(TakenOver::Undecided);
        }
        self.read(|tables| {
            let taken = tables.meta.get(TAKEN_OVER_KEY)?;
            Ok(taken.map_or(TakenOver::Nothing, |taken| {
                TakenOver::Transaction(taken.value())
            }))
        })
    }

    /// Replaces everything by the snapshots of v0.15.
    pub(crate) fn import(&self, old: &OldSnapshots) -> Result<(), SnapshotterError> {
        let ids: HashMap<&str, u64> = old
            .snapshots
            .iter()
            .map(|snapshot| (snapshot.name.as_str(), snapshot.id))
            .collect();
        self.write(|tables| {
            tables.snapshots.retain(|_, _| false)?;
            tables.children.retain(|_, _| false)?;
            tables.targets.retain(|_, ()| false)?;
            tables.lazy.retain(|_, _| false)?;
            let mut next_id = 1;
            for snapshot in &old.snapshots {
                let parents = match snapshot.parent.as_str() {
                    "" => Vec::new(),
                    parent => vec![parent_link(snapshot, ids.get(parent).copied())?],
                };
                tables.put(&record(snapshot), &parents)?;
                if snapshot.labels.contains_key(labels::REMOTE) {
                    let lazy = lazy_record(snapshot).encode_to_vec();
                    tables.lazy.insert(snapshot.id, lazy.as_slice())?;
                }
                next_id = next_id.max(snapshot.id.saturating_add(1));
            }
            let known = tables.meta.get(NEXT_ID_KEY)?.map_or(1, |next| next.value());
            tables.meta.insert(NEXT_ID_KEY, next_id.max(known))?;
            // Every directory is ours now, also those of snapshots that v0.15 had removed.
            tables.meta.insert(FIRST_ID_KEY, 1)?;
            tables.meta.insert(TAKEN_OVER_KEY, old.transaction)?;
            tables.meta.insert(SCHEMA_KEY, SCHEMA)?;
            Ok(())
        })
    }

    /// Remembers what the root of a lazy layer was found to be, which v0.15 did not record.
    pub(crate) fn set_lazy_root(
        &self,
        id: u64,
        lazy: &LazyRecord,
        root: MountedInfo,
    ) -> Result<(), SnapshotterError> {
        let changed = LazyRecord::new(lazy.namespace.clone(), lazy.labels.clone(), root);
        if changed == *lazy {
            return Ok(());
        }
        self.write(|tables| {
            // It may have been removed meanwhile.
            if tables.lazy.get(id)?.is_some() {
                tables.lazy.insert(id, changed.encode_to_vec().as_slice())?;
            }
            Ok(())
        })
    }
}

fn parent_link(snapshot: &OldSnapshot, id: Option<u64>) -> Result<Link, SnapshotterError> {
    let id = id.ok_or_else(|| SnapshotterError::Corrupt {
        name: snapshot.name.clone(),
        reason: format!("its parent {:?} does not exist", snapshot.parent),
    })?;
    Ok(Link {
        id,
        name: snapshot.parent.clone(),
        lazy: None,
    })
}

fn record(snapshot: &OldSnapshot) -> Record {
    Record {
        id: snapshot.id,
        info: Info {
            name: snapshot.name.clone(),
            parent: snapshot.parent.clone(),
            kind: snapshot.kind.into(),
            created_at: Some(snapshot.created_at.into()),
            updated_at: Some(snapshot.updated_at.into()),
            labels: snapshot.labels.clone(),
        },
        usage: match snapshot.kind {
            Kind::Committed => snapshot.usage,
            _ => super::Usage::default(),
        },
        fallback: None,
        unpacked: snapshot.labels.contains_key(labels::HAS_INDEX)
            && !snapshot.labels.contains_key(labels::REMOTE),
        // Only a container's own snapshot has such labels; what cannot be read was no map to v0.15 either.
        id_maps: labels::id_maps(&snapshot.labels)
            .ok()
            .flatten()
            .filter(|_| snapshot.kind != Kind::Committed)
            .map(|maps| IdMapsRecord::from(&maps)),
    }
}

/// v0.15 keeps the labels of a Prepare on the snapshot, with its own beside them.
fn lazy_record(snapshot: &OldSnapshot) -> LazyRecord {
    let mut of_prepare = snapshot.labels.clone();
    for ours in [labels::REMOTE, labels::HAS_INDEX, labels::NAMESPACE] {
        of_prepare.remove(ours);
    }
    let namespace = snapshot
        .labels
        .get(labels::NAMESPACE)
        .map_or(DEFAULT_NAMESPACE, String::as_str);
    LazyRecord::new(namespace.to_owned(), of_prepare, MountedInfo::default())
}
