//! What the slots say about requests that workers handle, or handled when their server died.

use zerocopy::FromBytes as _;

use super::layout::{JournalLayout, SLOT_SIZE, SLOTS};
use crate::abi::{InHeader, UNIQUE_RESEND, opcode};

/// A request that a dead worker had in its slot.
pub(super) struct Found {
    pub(super) connection: u64,
    /// Without [`UNIQUE_RESEND`].
    pub(super) unique: u64,
    pub(super) bytes: Vec<u8>,
}

/// Whether a request, by its id without [`UNIQUE_RESEND`], is in a slot.
pub(super) fn contains(layout: &JournalLayout, connection: u64, unique: u64) -> bool {
    (0..SLOTS).any(|number| {
        let mut header = [0; size_of::<InHeader>()];
        layout.slots[number].read(&mut header);
        let header = InHeader::read_from_bytes(&header);
        header.is_ok_and(|header| header.len != 0 && header.unique & !UNIQUE_RESEND == unique)
            && layout.slot_headers[number].connection.get() == connection
    })
}

/// The requests in the slots whose callers wait for an answer.
pub(super) fn left_in_slots(layout: &JournalLayout) -> impl Iterator<Item = Found> + '_ {
    (0..SLOTS).filter_map(|number| {
        let mut header = [0; size_of::<InHeader>()];
        layout.slots[number].read(&mut header);
        let header = InHeader::read_from_bytes(&header).ok()?;
        let length = usize::try_from(header.len).ok()?;
        let is_answered = !matches!(
            header.opcode,
            opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT | opcode::DESTROY
        );
        if !is_answered || !(size_of::<InHeader>()..=SLOT_SIZE).contains(&length) {
            return None;
        }
        let mut bytes = vec![0; length];
        layout.slots[number].read(&mut bytes);
        Some(Found {
            connection: layout.slot_headers[number].connection.get(),
            unique: header.unique & !UNIQUE_RESEND,
            bytes,
        })
    })
}
