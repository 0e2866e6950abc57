//! Listing with filters. The query of containerd after every lazy Prepare (target and parent) is
//! answered from an index, as are filters by name and by parent.

use std::collections::BTreeSet;

use prost::bytes::Bytes;
use redb::ReadableTable;

use super::record::{EncodedRecord, decode};
use super::search::find;
use super::tables::{Attempt, Reader};
use crate::api::v1::{Info, Kind};
use crate::filter::{Fields, Filters};
use crate::labels;

impl Fields for Info {
    fn field(&self, path: &[String]) -> Option<&str> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "name" => Some(&self.name),
            "parent" => Some(&self.parent),
            "kind" => match self.kind() {
                Kind::Unknown => None,
                Kind::View => Some("view"),
                Kind::Active => Some("active"),
                Kind::Committed => Some("committed"),
            },
            "labels" => self.labels.get(&rest.join(".")).map(String::as_str),
            _ => None,
        }
    }
}

/// Passes every snapshot that the filters accept to `visit`; see [`Metadata::list`](super::Metadata::list).
pub(super) fn list(
    tables: &Reader,
    filters: &Filters,
    mut visit: impl FnMut(Bytes) -> bool,
) -> Attempt<()> {
    let mut visit_accepted = |name: &str, bytes: &[u8]| -> Attempt<bool> {
        let EncodedRecord { info } = decode(name, bytes)?;
        let accepted = filters.accept_all() || filters.accepts(&decode::<Info>(name, &info)?);
        Ok(!accepted || visit(info))
    };
    if let Some(names) = candidates(tables, filters)? {
        for name in names {
            let Some(bytes) = tables.snapshots.get(name.as_str())? else {
                continue;
            };
            if !visit_accepted(&name, bytes.value())? {
                break;
            }
        }
        return Ok(());
    }
    for entry in tables.snapshots.iter()? {
        let (name, bytes) = entry?;
        if !visit_accepted(name.value(), bytes.value())? {
            break;
        }
    }
    Ok(())
}

/// Returns names that include all accepted snapshots, if an index can tell.
fn candidates(tables: &Reader, filters: &Filters) -> Attempt<Option<BTreeSet<String>>> {
    if let Some(names) = filters.demanded(&["name"]) {
        return Ok(Some(names.into_iter().map(str::to_owned).collect()));
    }
    let mut found = BTreeSet::new();
    if let Some(targets) = filters.demanded(&["labels", labels::TARGET]) {
        for target in targets {
            for entry in tables.targets.range((target, "")..)? {
                let (key, _) = entry?;
                let (value, name) = key.value();
                if value != target {
                    break;
                }
                found.insert(name.to_owned());
            }
        }
        return Ok(Some(found));
    }
    if let Some(parents) = filters.demanded(&["parent"]) {
        for parent in parents {
            if parent.is_empty() {
                // Snapshots without a parent are in no index.
                return Ok(None);
            }
            if let Some(parent) = find(&tables.snapshots, parent)? {
                for child in tables
                    .children
                    .range((parent.id, 0)..=(parent.id, u64::MAX))?
                {
                    found.insert(child?.1.value().to_owned());
                }
            }
        }
        return Ok(Some(found));
    }
    Ok(None)
}
