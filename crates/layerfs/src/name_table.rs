//! The names of a growing tree, by directory: a table that hostile names cannot make slow.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use hashbrown::HashTable;
use soci_meter::{Meter, OverLimit};

/// A name in a directory and the node that it stands for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot<'a> {
    pub(crate) directory: u32,
    /// [`Slot::REMOVED`] if the name was removed.
    pub(crate) node: u32,
    pub(crate) name: &'a [u8],
}

impl Slot<'_> {
    pub(crate) const REMOVED: u32 = u32::MAX;
}

/// Names by directory. The keys of the hash are random: what collides, no layer can know.
#[derive(Default)]
pub(crate) struct NameTable<'a> {
    slots: Vec<Slot<'a>>,
    table: HashTable<u32>,
    hasher: RandomState,
}

/// Bytes of a table per slot: an index and a control byte.
const TABLE_SLOT: u64 = 5;

impl<'a> NameTable<'a> {
    pub(crate) fn reserve(&mut self, names: usize, meter: &mut Meter) -> Result<(), OverLimit> {
        meter.charge_values::<Slot<'_>>(names)?;
        self.slots.reserve_exact(names);
        self.reserve_table(names, meter)
    }

    fn reserve_table(&mut self, more: usize, meter: &mut Meter) -> Result<(), OverLimit> {
        let least = (self.table.len() as u64).saturating_add(more as u64);
        // The load is at most seven eighths of a power of two.
        let slots = (least.saturating_mul(8) / 7).saturating_add(1);
        let slots = slots.checked_next_power_of_two().unwrap_or(u64::MAX);
        meter.charge(slots.saturating_mul(TABLE_SLOT))?;
        let (slots, hasher) = (&self.slots, &self.hasher);
        self.table.reserve(more, |&at| hash_at(slots, hasher, at));
        Ok(())
    }

    pub(crate) fn get(&self, directory: u32, name: &[u8]) -> Option<u32> {
        let hash = hash(&self.hasher, directory, name);
        let at = self.table.find(hash, |&at| self.is(at, directory, name))?;
        self.slot(*at).map(|slot| slot.node)
    }

    /// Names a node; returns whether another had the name before.
    pub(crate) fn put(
        &mut self,
        directory: u32,
        name: &'a [u8],
        node: u32,
        meter: &mut Meter,
    ) -> Result<bool, OverLimit> {
        let hash = hash(&self.hasher, directory, name);
        let found = self.table.find(hash, |&at| self.is(at, directory, name));
        if let Some(&at) = found {
            if let Some(slot) = self.slots.get_mut(to_index(at)) {
                slot.node = node;
            }
            return Ok(true);
        }
        if self.slots.len() == self.slots.capacity() {
            let more = self.slots.len() / 2 + 16;
            meter.charge_values::<Slot<'_>>(more)?;
            self.slots.reserve_exact(more);
        }
        if self.table.len() == self.table.capacity() {
            self.reserve_table(self.table.len().max(16), meter)?;
        }
        // There are fewer names than numbers: each belongs to an entry or an implied directory.
        let at = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        self.slots.push(Slot {
            directory,
            node,
            name,
        });
        let (slots, hasher) = (&self.slots, &self.hasher);
        let rehash = |&at: &u32| hash_at(slots, hasher, at);
        self.table.insert_unique(hash, at, rehash);
        Ok(false)
    }

    /// Removes a name; returns whether it was there.
    pub(crate) fn remove(&mut self, directory: u32, name: &[u8]) -> bool {
        let hash = hash(&self.hasher, directory, name);
        let slots = &self.slots;
        let is = |&at: &u32| {
            let slot = slots.get(to_index(at));
            slot.is_some_and(|slot| slot.directory == directory && slot.name == name)
        };
        let Ok(entry) = self.table.find_entry(hash, is) else {
            return false;
        };
        let (at, _) = entry.remove();
        if let Some(slot) = self.slots.get_mut(to_index(at)) {
            slot.node = Slot::REMOVED;
        }
        true
    }

    /// The names, sorted by directory and name, without those that were removed.
    pub(crate) fn into_sorted(self) -> Vec<Slot<'a>> {
        let Self { mut slots, .. } = self;
        slots.retain(|slot| slot.node != Slot::REMOVED);
        slots.sort_unstable_by_key(|slot| (slot.directory, slot.name));
        slots
    }

    fn is(&self, at: u32, directory: u32, name: &[u8]) -> bool {
        self.slot(at)
            .is_some_and(|slot| slot.directory == directory && slot.name == name)
    }

    fn slot(&self, at: u32) -> Option<&Slot<'a>> {
        self.slots.get(to_index(at))
    }
}

fn hash(hasher: &RandomState, directory: u32, name: &[u8]) -> u64 {
    hasher.hash_one((directory, name))
}

fn hash_at(slots: &[Slot<'_>], hasher: &RandomState, at: u32) -> u64 {
    slots
        .get(to_index(at))
        .map_or(0, |slot| hash(hasher, slot.directory, slot.name))
}

pub(crate) fn to_index(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
