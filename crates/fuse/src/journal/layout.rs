//! The journal's memory, in types. Nothing in it is a plain number or byte: the kernel, the threads of a
//! server and the next server share it, and any bytes are valid values.
//!
//! Numbers are native-endian: the memory never leaves the machine, nor survives a boot. The offsets are
//! version 2 of the journal's format (see the test below). Version 1 is [`JournalLayout`] alone.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

use zerocopy::FromBytes;

pub(crate) const MAGIC: u64 = u64::from_ne_bytes(*b"SOCIjrnl");
/// The version of the format; changes with this file.
pub(crate) const VERSION: u64 = 2;

/// Number of slots, and with it of workers at most.
pub(crate) const SLOTS: usize = 16;
/// Bytes of a slot. The kernel refuses to read a request into less than 8192 bytes
/// (`FUSE_MIN_READ_BUFFER`); the largest request of a read-only mount is a page of forgets.
pub(crate) const SLOT_SIZE: usize = 16 << 10;
/// Number of entries in the first part.
pub(crate) const FIRST_ENTRIES: usize = 1024;
/// Number of entries in the second part.
pub(crate) const MORE_ENTRIES: usize = 15 << 10;
/// Number of requests of which only the id is recorded.
pub(crate) const UNRECORDED: usize = 32 << 10;
/// Bytes of a request that an entry has room for: a name has at most 255.
pub(crate) const ENTRY_ROOM: usize = 472;

/// The first part of the memory, which stays resident.
#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct JournalLayout {
    pub(crate) magic: SharedU64,
    pub(crate) version: SharedU64,
    /// 1 if the last server left on purpose.
    pub(crate) left_on_purpose: SharedU32,
    /// Number of entries of [`Extension::entries`] that were ever used: those behind them are not read,
    /// so that they take no memory.
    pub(crate) more_used: SharedU32,
    /// The same of [`Extension::unrecorded`].
    pub(crate) unrecorded_used: SharedU32,
    _unused_in_first_page: [AtomicU8; 4068],
    pub(crate) slot_headers: [SlotHeader; SLOTS],
    _unused_in_second_page: [AtomicU8; 3072],
    pub(crate) entries: [Entry; FIRST_ENTRIES],
    /// Each holds one request, which begins with its own length (`struct fuse_in_header`); 0: none.
    pub(crate) slots: [SharedBytes<{ SLOT_SIZE / 8 }>; SLOTS],
}

/// The second part. Its pages take memory once they are used.
#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct Extension {
    pub(crate) entries: [Entry; MORE_ENTRIES],
    pub(crate) unrecorded: [UnrecordedId; UNRECORDED],
}

/// Both parts: version 2.
#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct WholeLayout {
    pub(crate) first: JournalLayout,
    pub(crate) extension: Extension,
}

/// A request for which there was no entry.
#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct UnrecordedId {
    /// Key of its connection.
    pub(crate) connection: SharedU64,
    /// Its id, without [`crate::UNIQUE_RESEND`]; 0: none. Stored last.
    pub(crate) unique: SharedU64,
}

/// What is recorded of the request in a slot in addition to its bytes.
#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct SlotHeader {
    /// Key of the connection that the request came from.
    pub(crate) connection: SharedU64,
    _unused: [AtomicU64; 7],
}

/// A request that is answered later.
#[derive(FromBytes)]
#[repr(C)]
pub(crate) struct Entry {
    /// [`Entry::FREE`], [`Entry::WAITING`] or [`Entry::INTERRUPTED`].
    pub(crate) state: SharedU32,
    /// How often the kernel has been asked to send it again since a server had it.
    pub(crate) age: SharedU32,
    /// Key of its connection.
    pub(crate) connection: SharedU64,
    /// Its id, without [`crate::UNIQUE_RESEND`].
    pub(crate) unique: SharedU64,
    /// Crashes of servers that had it.
    pub(crate) crashes: SharedU32,
    /// Kills of servers that had it.
    pub(crate) kills: SharedU32,
    /// Bytes of the request.
    pub(crate) length: SharedU32,
    _unused: AtomicU32,
    /// The request, as it was read.
    pub(crate) bytes: SharedBytes<{ ENTRY_ROOM / 8 }>,
}

impl Entry {
    pub(crate) const FREE: u32 = 0;
    /// A server is about to answer it.
    pub(crate) const WAITING: u32 = 1;
    /// The server that was about to answer it is dead.
    pub(crate) const INTERRUPTED: u32 = 2;
}

/// A number in shared memory. Stores become visible in program order, also to the next server if this
/// process is killed between two of them.
#[derive(FromBytes)]
#[repr(transparent)]
pub(crate) struct SharedU32(AtomicU32);

impl SharedU32 {
    pub(crate) fn get(&self) -> u32 {
        about_to_load();
        self.0.load(Acquire)
    }

    pub(crate) fn set(&self, value: u32) {
        self.0.store(value, Release);
        stored();
    }
}

/// [`SharedU32`] of 64 bits.
#[derive(FromBytes)]
#[repr(transparent)]
pub(crate) struct SharedU64(AtomicU64);

impl SharedU64 {
    pub(crate) fn get(&self) -> u64 {
        about_to_load();
        self.0.load(Acquire)
    }

    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Release);
        stored();
    }
}

/// Bytes in shared memory, copied a word at a time. A number that is stored afterwards marks them as
/// complete; readers load it first.
#[derive(FromBytes)]
#[repr(transparent)]
pub(crate) struct SharedBytes<const WORDS: usize>([AtomicU64; WORDS]);

impl<const WORDS: usize> SharedBytes<WORDS> {
    /// Copies bytes in, as many as there is room for. The rest of the last word becomes 0.
    pub(crate) fn write(&self, bytes: &[u8]) {
        for (word, bytes) in self.0.iter().zip(bytes.chunks(8)) {
            let mut value = [0; 8];
            value[..bytes.len()].copy_from_slice(bytes);
            word.store(u64::from_ne_bytes(value), Relaxed);
            stored();
        }
    }

    /// Copies the first `target.len()` bytes out, or all if there are fewer.
    pub(crate) fn read(&self, target: &mut [u8]) {
        for (word, bytes) in self.0.iter().zip(target.chunks_mut(8)) {
            about_to_load();
            let value = word.load(Relaxed).to_ne_bytes();
            bytes.copy_from_slice(&value[..bytes.len()]);
        }
    }

    /// Clears the first word, in which a request has its length.
    pub(crate) fn clear_length(&self) {
        self.0[0].store(0, Release);
        stored();
    }

    /// The words, for the kernel to write to.
    pub(crate) const fn words(&self) -> &[AtomicU64; WORDS] {
        &self.0
    }
}

/// After each store: tests end the server here, or let another thread run.
fn stored() {
    #[cfg(test)]
    observe::stored();
}

/// Before each load: tests let another thread run here.
fn about_to_load() {
    #[cfg(test)]
    observe::may_switch();
}

#[cfg(test)]
pub(crate) mod observe {
    use std::cell::{Cell, RefCell};

    thread_local! {
        static OBSERVER: RefCell<Option<Box<dyn FnMut()>>> = RefCell::default();
        /// The switch to another thread of a model. All are coroutines of this thread.
        static SWITCH: Cell<Option<fn()>> = const { Cell::new(None) };
    }

    /// Calls `switch` at each access to the memory and each lock of this thread while `work` runs.
    pub(crate) fn each_access(switch: fn(), work: impl FnOnce()) {
        SWITCH.set(Some(switch));
        work();
        SWITCH.set(None);
    }

    /// Runs work in which no other thread of a model runs.
    pub(crate) fn undisturbed<T>(work: impl FnOnce() -> T) -> T {
        let switch = SWITCH.take();
        let done = work();
        SWITCH.set(switch);
        done
    }

    /// Returns whether another thread of a model may have run.
    pub(crate) fn may_switch() -> bool {
        let switch = SWITCH.get();
        if let Some(switch) = switch {
            switch();
        }
        switch.is_some()
    }

    /// Calls `observer` after each store of this thread while `work` runs.
    pub(crate) fn each_store(observer: impl FnMut() + 'static, work: impl FnOnce()) {
        OBSERVER.set(Some(Box::new(observer)));
        work();
        OBSERVER.set(None);
    }

    pub(super) fn stored() {
        may_switch();
        // The observer's own stores are not observed.
        if let Some(mut observer) = OBSERVER.take() {
            observer();
            OBSERVER.set(Some(observer));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    /// Servers of different versions hand this memory to each other: a change needs another version number.
    #[test]
    fn the_offsets_are_those_of_version_2() {
        assert_eq!(VERSION, 2);
        assert_eq!(offset_of!(JournalLayout, magic), 0);
        assert_eq!(offset_of!(JournalLayout, version), 8);
        assert_eq!(offset_of!(JournalLayout, left_on_purpose), 16);
        assert_eq!(offset_of!(JournalLayout, more_used), 20);
        assert_eq!(offset_of!(JournalLayout, unrecorded_used), 24);
        assert_eq!(offset_of!(JournalLayout, slot_headers), 4096);
        assert_eq!(offset_of!(SlotHeader, connection), 0);
        assert_eq!(size_of::<SlotHeader>(), 64);
        assert_eq!(offset_of!(JournalLayout, entries), 8192);
        assert_eq!(offset_of!(Entry, state), 0);
        assert_eq!(offset_of!(Entry, age), 4);
        assert_eq!(offset_of!(Entry, connection), 8);
        assert_eq!(offset_of!(Entry, unique), 16);
        assert_eq!(offset_of!(Entry, crashes), 24);
        assert_eq!(offset_of!(Entry, kills), 28);
        assert_eq!(offset_of!(Entry, length), 32);
        assert_eq!(offset_of!(Entry, bytes), 40);
        assert_eq!(size_of::<Entry>(), 512);
        let slots = 8192 + 1024 * 512;
        assert_eq!(offset_of!(JournalLayout, slots), slots);
        assert_eq!(size_of::<JournalLayout>(), slots + 16 * (16 << 10));
        let first = slots + 16 * (16 << 10);
        assert_eq!(offset_of!(WholeLayout, extension), first);
        let unrecorded = 15 * 1024 * 512;
        assert_eq!(offset_of!(Extension, unrecorded), unrecorded);
        assert_eq!(offset_of!(UnrecordedId, unique), 8);
        assert_eq!(
            size_of::<WholeLayout>(),
            first + unrecorded + 16 * (32 << 10)
        );
        assert_eq!(SLOT_SIZE, size_of::<SharedBytes<{ SLOT_SIZE / 8 }>>());
        assert_eq!(ENTRY_ROOM, size_of::<SharedBytes<{ ENTRY_ROOM / 8 }>>());
    }

    #[test]
    fn bytes_of_any_length_are_copied_in_and_out() {
        let shared = SharedBytes::<2>([AtomicU64::new(u64::MAX), AtomicU64::new(u64::MAX)]);
        for length in 0..=16 {
            let bytes: Vec<u8> = (1..).take(length).collect();
            shared.write(&bytes);
            let mut copy = vec![0xee; length];
            shared.read(&mut copy);
            assert_eq!(copy, bytes);
        }
        shared.write(&[7; 20]);
        let mut copy = [0; 20];
        shared.read(&mut copy);
        assert_eq!(
            copy,
            [7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 0, 0, 0, 0]
        );
        shared.clear_length();
        shared.read(&mut copy);
        assert_eq!(copy[..9], [0, 0, 0, 0, 0, 0, 0, 0, 7]);
    }
}
