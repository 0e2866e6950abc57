//! Searches for snapshots, in a transaction of either kind.

use redb::ReadableTable;

use super::error::MetadataError;
use super::record::{Link, Record, decode};
use super::tables::Attempt;
use crate::api::v1::Kind;

/// Maximum length of a chain of parents. A longer one is damaged: overlayfs allows 500 lower directories.
const MAX_CHAIN: usize = 10_000;

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
        MetadataError::NotFound {
            name: name.to_owned(),
        }
        .into()
    })
}

/// Returns the parent and its parents, nearest first; none if `parent` is empty. All must be committed.
pub(super) fn chain(
    snapshots: &impl Snapshots,
    lazy: &impl Lazies,
    parent: &str,
) -> Attempt<Vec<Link>> {
    let mut chain: Vec<Link> = Vec::new();
    let mut name = parent.to_owned();
    while !name.is_empty() {
        let Some(record) = find(snapshots, &name)? else {
            return Err(MetadataError::ParentNotFound { parent: name }.into());
        };
        if record.kind() != Kind::Committed {
            return Err(MetadataError::ParentNotCommitted { parent: name }.into());
        }
        if chain.len() >= MAX_CHAIN {
            return Err(MetadataError::corrupt(&name, "its parents form a cycle").into());
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

/// Returns the name of the first committed snapshot for this target that fits.
pub(super) fn find_target(
    targets: &impl ReadableTable<(&'static str, &'static str), ()>,
    snapshots: &impl Snapshots,
    target: &str,
    fits: impl Fn(&Record) -> bool,
) -> Attempt<Option<String>> {
    for entry in targets.range((target, "")..)? {
        let (key, ()) = entry.map(|(key, value)| (key, value.value()))?;
        let (found, name) = key.value();
        if found != target {
            break;
        }
        let record = get(snapshots, name)?;
        if record.kind() == Kind::Committed && fits(&record) {
            return Ok(Some(name.to_owned()));
        }
    }
    Ok(None)
}
