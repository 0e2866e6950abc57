//! Replacing all entries by the snapshots of v0.15.

use std::collections::HashMap;
use std::time::SystemTime;

use prost::Message;
use redb::ReadableTable;

use super::error::MetadataError;
use super::record::{IdMapsRecord, LazyRecord, Link, Record, Usage};
use super::tables::{Attempt, FIRST_ID_KEY, IMPORTED_KEY, NEXT_ID_KEY, SCHEMA, SCHEMA_KEY, Writer};
use crate::api::v1::{Info, Kind};
use crate::labels::{self, Labels};
use soci_layer::MountedInfo;

/// The namespace of a lazy snapshot without a label for it.
const DEFAULT_NAMESPACE: &str = "default";

/// A snapshot in the database of v0.15.
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

/// Replaces all entries by these snapshots, which v0.15 had after `transaction`.
pub(super) fn replace_all(
    tables: &mut Writer<'_>,
    transaction: u64,
    snapshots: &[OldSnapshot],
) -> Attempt<()> {
    let ids: HashMap<&str, u64> = snapshots
        .iter()
        .map(|snapshot| (snapshot.name.as_str(), snapshot.id))
        .collect();
    tables.snapshots.retain(|_, _| false)?;
    tables.children.retain(|_, _| false)?;
    tables.targets.retain(|_, ()| false)?;
    tables.lazy.retain(|_, _| false)?;
    let mut next_id = 1;
    for snapshot in snapshots {
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
    tables.meta.insert(IMPORTED_KEY, transaction)?;
    tables.meta.insert(SCHEMA_KEY, SCHEMA)?;
    Ok(())
}

fn parent_link(snapshot: &OldSnapshot, id: Option<u64>) -> Result<Link, MetadataError> {
    let id = id.ok_or_else(|| {
        let cause = format!("its parent {:?} does not exist", snapshot.parent);
        MetadataError::corrupt(&snapshot.name, cause)
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
            _ => Usage::default(),
        },
        fallback: None,
        // Those that were pulled in parallel have no label of an index.
        unpacked: snapshot.labels.contains_key(labels::NAMESPACE)
            && !snapshot.labels.contains_key(labels::REMOTE),
        // Only a container's own snapshot has such labels. v0.15 ignored malformed ones, too.
        id_maps: labels::id_maps(&snapshot.labels)
            .ok()
            .flatten()
            .filter(|_| snapshot.kind != Kind::Committed)
            .map(|maps| IdMapsRecord::from(&maps)),
    }
}

/// Builds the entry of a lazy snapshot: v0.15 keeps its own labels beside those of the Prepare.
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
