//! Directories that have no entry of their own, in the making of a layer.

use std::collections::BTreeMap;

use soci_meter::{Meter, OverLimit};

/// Memory of a directory without its path.
const MEMORY: u64 = 96;

/// Directories that were made without an entry, in the making of a layer.
#[derive(Debug, Default)]
pub(super) struct Implied(BTreeMap<u64, Vec<u8>>);

impl Implied {
    /// Records one, by its path without links.
    pub(super) fn add(
        &mut self,
        path: &[u8],
        inode: u64,
        meter: &mut Meter,
    ) -> Result<(), OverLimit> {
        meter.charge(MEMORY + path.len() as u64)?;
        self.0.insert(inode, path.to_vec());
        Ok(())
    }

    /// Forgets one: it has an entry after all, or was removed.
    pub(super) fn forget(&mut self, inode: u64, meter: &mut Meter) {
        if let Some(path) = self.0.remove(&inode) {
            meter.release(MEMORY + path.len() as u64);
        }
    }

    /// Their paths, by inode.
    pub(super) fn into_paths(self) -> BTreeMap<u64, Vec<u8>> {
        self.0
    }
}
