//! Sets of extended attributes, each stored once however many inodes have it.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use hashbrown::HashTable;
use soci_meter::Meter;

use crate::name_table::to_index;
use crate::options::TreeError;

/// Most bytes of names and values that one file has (XATTR_SIZE_MAX in linux/limits.h is that much
/// for a single value; XATTR_LIST_MAX is that much for the names).
pub(crate) const MOST_OF_A_FILE: usize = 64 << 10;

/// An extended attribute that an entry of the layer gives a node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record<'a> {
    pub(crate) node: u32,
    /// Order in which the records came: of several with one name the last counts.
    pub(crate) order: u32,
    pub(crate) name: &'a [u8],
    pub(crate) value: &'a [u8],
}

/// One attribute of a set: its name in the bytes, and right behind it the value.
#[derive(Debug, Clone, Copy)]
struct Attribute {
    at: u32,
    value_len: u32,
    name_len: u16,
}

/// Sets of attributes, sorted by name.
#[derive(Debug, Default)]
pub(crate) struct XattrSets {
    /// Where each set starts in `attributes`; it ends where the next one starts.
    starts: Vec<u32>,
    attributes: Vec<Attribute>,
    bytes: Vec<u8>,
}

/// A node whose attributes take more than [`MOST_OF_A_FILE`].
pub(crate) struct TooLarge {
    pub(crate) node: u32,
}

impl XattrSets {
    /// Makes the sets of `records`, and calls `assign` with each node that has any, and the number of
    /// its set, from 1 on.
    pub(crate) fn build(
        mut records: Vec<Record<'_>>,
        meter: &mut Meter,
        mut assign: impl FnMut(u32, u32, &mut Meter) -> Result<(), TreeError>,
    ) -> Result<Result<Self, TooLarge>, TreeError> {
        keep_last(
            &mut records,
            |record| (record.node, record.name),
            |record| record.order,
        );
        let mut sets = Self::default();
        let hasher = RandomState::new();
        let mut known: HashTable<u32> = HashTable::new();
        for group in records.chunk_by(|a, b| a.node == b.node) {
            let Some(node) = group.first().map(|record| record.node) else {
                continue;
            };
            let size = |record: &Record<'_>| record.name.len() + record.value.len();
            let bytes: usize = group.iter().map(size).sum();
            if bytes > MOST_OF_A_FILE {
                return Ok(Err(TooLarge { node }));
            }
            meter.step(group.len() as u64)?;
            let hash = hash(&hasher, group.iter().map(|r| (r.name, r.value)));
            let same = |&set: &u32| {
                let ours = group.iter().map(|record| (record.name, record.value));
                sets.get(set).eq(ours)
            };
            let set = match known.find(hash, same) {
                Some(&set) => set,
                None => {
                    meter.charge(bytes as u64)?;
                    meter.charge_values::<Attribute>(group.len())?;
                    // A start, and a slot in the table while the sets are made.
                    meter.charge(4 + 10)?;
                    let set = sets.push(group)?;
                    known.insert_unique(hash, set, |&set| self::hash(&hasher, sets.get(set)));
                    set
                }
            };
            assign(node, set, meter)?;
        }
        sets.starts.shrink_to_fit();
        sets.attributes.shrink_to_fit();
        sets.bytes.shrink_to_fit();
        Ok(Ok(sets))
    }

    fn push(&mut self, group: &[Record<'_>]) -> Result<u32, TreeError> {
        let index = |length: usize| u32::try_from(length).map_err(|_| TreeError::TooLarge);
        self.starts.push(index(self.attributes.len())?);
        for record in group {
            self.attributes.push(Attribute {
                at: index(self.bytes.len())?,
                value_len: index(record.value.len())?,
                name_len: u16::try_from(record.name.len()).map_err(|_| TreeError::TooLarge)?,
            });
            self.bytes.extend_from_slice(record.name);
            self.bytes.extend_from_slice(record.value);
        }
        index(self.starts.len())
    }

    /// Number of sets.
    pub(crate) const fn len(&self) -> usize {
        self.starts.len()
    }

    /// Bytes of memory.
    pub(crate) const fn memory(&self) -> usize {
        self.starts.capacity() * size_of::<u32>()
            + self.attributes.capacity() * size_of::<Attribute>()
            + self.bytes.capacity()
    }

    fn attributes(&self, set: u32) -> &[Attribute] {
        let range = || {
            let index = to_index(set).checked_sub(1)?;
            let start = to_index(*self.starts.get(index)?);
            let next = self.starts.get(index + 1);
            let end = next.map_or(self.attributes.len(), |next| to_index(*next));
            self.attributes.get(start..end)
        };
        range().unwrap_or_default()
    }

    fn name_and_value(&self, attribute: &Attribute) -> (&[u8], &[u8]) {
        let start = to_index(attribute.at);
        let bytes = self.bytes.get(start..).unwrap_or_default();
        let split = bytes.split_at_checked(attribute.name_len.into());
        let (name, rest) = split.unwrap_or_default();
        let value = rest.get(..to_index(attribute.value_len));
        (name, value.unwrap_or_default())
    }

    /// The attributes of a set; of set 0, which does not exist, none.
    pub(crate) fn get(&self, set: u32) -> impl Iterator<Item = (&[u8], &[u8])> {
        let attributes = self.attributes(set).iter();
        attributes.map(|attribute| self.name_and_value(attribute))
    }

    /// The value of one attribute of a set.
    pub(crate) fn value(&self, set: u32, name: &[u8]) -> Option<&[u8]> {
        let attributes = self.attributes(set);
        let at = attributes
            .binary_search_by(|attribute| self.name_and_value(attribute).0.cmp(name))
            .ok()?;
        let attribute = attributes.get(at)?;
        Some(self.name_and_value(attribute).1)
    }
}

/// Sorts values by key; of those with one key only the one with the highest `order` stays. It takes as
/// many comparisons as sorting does: an image chooses how many there are.
fn keep_last<T, K: Ord>(values: &mut Vec<T>, key: impl Fn(&T) -> K, order: impl Fn(&T) -> u32) {
    values.sort_unstable_by(|a, b| key(a).cmp(&key(b)).then_with(|| order(a).cmp(&order(b))));
    values.dedup_by(|next, kept| {
        let same = key(next) == key(kept);
        if same {
            std::mem::swap(next, kept);
        }
        same
    });
}

fn hash<'a>(hasher: &RandomState, set: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> u64 {
    use std::hash::{Hash as _, Hasher as _};
    let mut state = hasher.build_hasher();
    for attribute in set {
        attribute.hash(&mut state);
    }
    state.finish()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn the_last_of_each_key_is_found_with_as_many_comparisons_as_sorting_takes() {
        const COUNT: u32 = 10_000;
        // As many keys as values, a tenth, and one.
        for keys in [COUNT, COUNT / 10, 1] {
            let value = |order: u32| (order.wrapping_mul(2_654_435_761) % keys, order);
            let mut values: Vec<_> = (0..COUNT).map(value).collect();
            let expected: BTreeMap<_, _> = values.iter().copied().collect();
            // A comparison looks at two; sorting takes about as many per value as its number has digits in
            // base 2, which are 14. Each with each other would be a hundred million.
            let left = Cell::new(u64::from(COUNT) * 2 * 2 * 14);
            let key = |value: &(u32, u32)| {
                left.set(left.get().checked_sub(1).expect("not that many looks"));
                value.0
            };
            keep_last(&mut values, key, |value| value.1);
            assert!(values.into_iter().eq(expected), "{keys} keys");
        }
    }
}
