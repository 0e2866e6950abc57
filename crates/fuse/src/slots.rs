//! The fixed memory that requests are read into.
//!
//! Each worker owns one slot, page-aligned and touched in advance, because a process killed inside
//! a read into a page that is not resident makes the caller get EIO. The slots are one block so
//! that it can become locked memory shared with a holder, which replays the requests in it.

/// Bytes of a slot. The kernel refuses to read a request into less than 8192 bytes
/// (`FUSE_MIN_READ_BUFFER`); the largest request of a read-only mount is a page of forgets.
pub(crate) const SLOT_SIZE: usize = 16 << 10;

const PAGE: usize = 4096;

/// One slot.
#[derive(Debug, Clone)]
#[repr(C, align(4096))]
pub(crate) struct Slot([u8; SLOT_SIZE]);

const _: () = assert!(align_of::<Slot>() == PAGE && size_of::<Slot>() == SLOT_SIZE);

impl Slot {
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// As many slots as there are workers, all pages touched.
pub(crate) fn allocate(count: usize) -> Vec<Slot> {
    // Not zero: a zeroed allocation would be mapped on first use only.
    let mut slots = vec![Slot([1; SLOT_SIZE]); count];
    for slot in &mut slots {
        slot.0.fill(0);
    }
    slots
}
