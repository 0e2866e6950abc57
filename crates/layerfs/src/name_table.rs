//! The names of a growing tree, by directory: a table that hostile names cannot make slow.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use hashbrown::HashTable;
use soci_meter::{Meter, OverLimit};

use crate::options::TreeError;

/// A name in a directory and the node that it stands for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    pub(crate) directory: u32,
    /// [`Slot::REMOVED`] if the name was removed.
    pub(crate) node: u32,
    /// Where its length and the name itself are in the text.
    at: u32,
}

impl Slot {
    pub(crate) const REMOVED: u32 = u32::MAX;
}

/// Names of at most 255 bytes, each behind its length.
#[derive(Debug, Default)]
pub(crate) struct Text(Vec<u8>);

impl Text {
    /// The name of a slot.
    pub(crate) fn name(&self, slot: &Slot) -> &[u8] {
        let rest = self.0.get(to_index(slot.at)..).unwrap_or_default();
        let name = rest.split_first().and_then(|(length, rest)| {
            let length = usize::from(*length);
            rest.get(..length)
        });
        name.unwrap_or_default()
    }

    fn push(&mut self, name: &[u8], meter: &mut Meter) -> Result<u32, TreeError> {
        let at = u32::try_from(self.0.len()).map_err(|_| TreeError::TooLarge)?;
        let length = u8::try_from(name.len()).map_err(|_| TreeError::TooLarge)?;
        if self.0.capacity() - self.0.len() <= name.len() {
            let more = self.0.len() / 2 + 4096;
            meter.charge(more as u64)?;
            self.0.reserve_exact(more);
        }
        self.0.push(length);
        self.0.extend_from_slice(name);
        Ok(at)
    }
}

/// Names by directory. The keys of the hash are random: what collides, no layer can know.
#[derive(Default)]
pub(crate) struct NameTable {
    slots: Vec<Slot>,
    text: Text,
    table: HashTable<u32>,
    hasher: RandomState,
}

/// The names of a tree, sorted by directory and name.
pub(crate) struct SortedNames {
    pub(crate) slots: Vec<Slot>,
    pub(crate) text: Text,
}

/// Bytes of a table per slot: an index and a control byte.
const TABLE_SLOT: u64 = 5;

impl NameTable {
    pub(crate) fn reserve(&mut self, names: usize, meter: &mut Meter) -> Result<(), OverLimit> {
        meter.charge_values::<Slot>(names)?;
        self.slots.reserve_exact(names);
        self.reserve_table(names, meter)
    }

    fn reserve_table(&mut self, more: usize, meter: &mut Meter) -> Result<(), OverLimit> {
        let least = (self.table.len() as u64).saturating_add(more as u64);
        // The load is at most seven eighths of a power of two.
        let slots = (least.saturating_mul(8) / 7).saturating_add(1);
        let slots = slots.checked_next_power_of_two().unwrap_or(u64::MAX);
        meter.charge(slots.saturating_mul(TABLE_SLOT))?;
        let (slots, text, hasher) = (&self.slots, &self.text, &self.hasher);
        self.table
            .reserve(more, |&at| hash_at(slots, text, hasher, at));
        Ok(())
    }

    pub(crate) fn get(&self, directory: u32, name: &[u8]) -> Option<u32> {
        let hash = hash(&self.hasher, directory, name);
        let is = |&at: &u32| is(&self.slots, &self.text, at, directory, name);
        let at = self.table.find(hash, is)?;
        self.slots.get(to_index(*at)).map(|slot| slot.node)
    }

    /// Names a node; returns whether another had the name before.
    pub(crate) fn put(
        &mut self,
        directory: u32,
        name: &[u8],
        node: u32,
        meter: &mut Meter,
    ) -> Result<bool, TreeError> {
        let hash = hash(&self.hasher, directory, name);
        let is = |&at: &u32| is(&self.slots, &self.text, at, directory, name);
        let found = self.table.find(hash, is);
        if let Some(&at) = found {
            if let Some(slot) = self.slots.get_mut(to_index(at)) {
                slot.node = node;
            }
            return Ok(true);
        }
        if self.slots.len() == self.slots.capacity() {
            let more = self.slots.len() / 2 + 16;
            meter.charge_values::<Slot>(more)?;
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
            at: self.text.push(name, meter)?,
        });
        let (slots, text, hasher) = (&self.slots, &self.text, &self.hasher);
        let rehash = |&at: &u32| hash_at(slots, text, hasher, at);
        self.table.insert_unique(hash, at, rehash);
        Ok(false)
    }

    /// Removes a name; returns whether it was there.
    pub(crate) fn remove(&mut self, directory: u32, name: &[u8]) -> bool {
        let hash = hash(&self.hasher, directory, name);
        let (slots, text) = (&self.slots, &self.text);
        let is = |&at: &u32| is(slots, text, at, directory, name);
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
    pub(crate) fn into_sorted(self) -> SortedNames {
        let Self {
            mut slots,
            text,
            table,
            hasher: _,
        } = self;
        // What follows needs memory of its own.
        drop(table);
        slots.retain(|slot| slot.node != Slot::REMOVED);
        slots.sort_unstable_by(|a, b| {
            let directories = a.directory.cmp(&b.directory);
            directories.then_with(|| text.name(a).cmp(text.name(b)))
        });
        SortedNames { slots, text }
    }
}

fn is(slots: &[Slot], text: &Text, at: u32, directory: u32, name: &[u8]) -> bool {
    slots
        .get(to_index(at))
        .is_some_and(|slot| slot.directory == directory && text.name(slot) == name)
}

fn hash(hasher: &RandomState, directory: u32, name: &[u8]) -> u64 {
    hasher.hash_one((directory, name))
}

fn hash_at(slots: &[Slot], text: &Text, hasher: &RandomState, at: u32) -> u64 {
    slots
        .get(to_index(at))
        .map_or(0, |slot| hash(hasher, slot.directory, text.name(slot)))
}

pub(crate) fn to_index(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
