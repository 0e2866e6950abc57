//! The records in the memory by number, across its two parts.

use super::layout::{Entry, FIRST_ENTRIES, MORE_ENTRIES, UNRECORDED};
use crate::shared_memory::{Extent, SharedMemory};

/// The entry with this number.
///
/// # Panics
/// If there is none: numbers come from [`Records`] of the same memory.
pub(super) fn entry(memory: &SharedMemory, number: usize) -> &Entry {
    match (number.checked_sub(FIRST_ENTRIES), memory.extension()) {
        (Some(number), Some(extension)) => &extension.entries[number],
        _ => &memory.layout().entries[number],
    }
}

/// Number of entries that the memory has.
pub(super) const fn entries(memory: &SharedMemory) -> usize {
    match memory.extent() {
        Extent::First => FIRST_ENTRIES,
        Extent::Whole => FIRST_ENTRIES + MORE_ENTRIES,
    }
}

/// Number of requests of which the memory can record the id alone.
pub(super) const fn unrecorded(memory: &SharedMemory) -> usize {
    match memory.extent() {
        Extent::First => 0,
        Extent::Whole => UNRECORDED,
    }
}
