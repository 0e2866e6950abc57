//! What is known of each span of a layer, in atomics, so that reads of stored spans take no lock.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// What is known of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Not stored.
    Missing,
    /// Stored by an earlier process; its checksum has not been compared yet.
    Unchecked,
    /// Stored, not yet durable.
    Fresh,
    /// Stored and durable.
    Durable,
    /// Being written or removed: missing for readers, and owned by the thread that set it.
    Busy,
}

const STATE_MASK: u32 = 7;
const READER: u32 = 8;

impl State {
    const fn of(word: u32) -> Self {
        match word & STATE_MASK {
            1 => Self::Unchecked,
            2 => Self::Fresh,
            3 => Self::Durable,
            4 => Self::Busy,
            _ => Self::Missing,
        }
    }

    const fn bits(self) -> u32 {
        match self {
            Self::Missing => 0,
            Self::Unchecked => 1,
            Self::Fresh => 2,
            Self::Durable => 3,
            Self::Busy => 4,
        }
    }

    pub(crate) const fn is_stored(self) -> bool {
        matches!(self, Self::Unchecked | Self::Fresh | Self::Durable)
    }
}

#[derive(Debug, Default)]
struct Slot {
    /// The state in the low three bits, the number of readers above.
    word: AtomicU32,
    /// crc32c of the uncompressed bytes, when the span is stored.
    sum: AtomicU32,
    /// When it was last used, on the store's clock.
    used: AtomicU32,
}

/// The states of all spans of a layer.
#[derive(Debug)]
pub(crate) struct SpanStates {
    slots: Box<[Slot]>,
}

/// Keeps a span's bytes from being removed.
pub(crate) struct Pin<'a> {
    slot: &'a Slot,
    pub(crate) state: State,
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.slot.word.fetch_sub(READER, Ordering::Release);
    }
}

impl SpanStates {
    pub(crate) fn new(count: u32) -> Self {
        Self {
            slots: (0..count).map(|_| Slot::default()).collect(),
        }
    }

    fn slot(&self, id: u32) -> Option<&Slot> {
        self.slots.get(id as usize)
    }

    pub(crate) fn state(&self, id: u32) -> State {
        self.slot(id).map_or(State::Missing, |slot| {
            State::of(slot.word.load(Ordering::Acquire))
        })
    }

    /// Pins a stored span.
    pub(crate) fn pin(&self, id: u32, now: u32) -> Option<Pin<'_>> {
        let slot = self.slot(id)?;
        // State and count share a word: a change of state sees the reader, or the reader sees the change.
        let state = State::of(slot.word.fetch_add(READER, Ordering::AcqRel));
        let pin = Pin { slot, state };
        if !state.is_stored() {
            return None;
        }
        slot.used.store(now, Ordering::Relaxed);
        Some(pin)
    }

    /// Changes the state if it is `from`.
    pub(crate) fn change(&self, id: u32, from: State, to: State) -> bool {
        self.slot(id).is_some_and(|slot| {
            slot.word
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
                    (State::of(word) == from).then_some((word & !STATE_MASK) | to.bits())
                })
                .is_ok()
        })
    }

    /// Waits for the last reader of a span whose state keeps new readers away.
    pub(crate) fn wait_for_readers(&self, id: u32) {
        let Some(slot) = self.slot(id) else { return };
        // Readers are in the middle of one pread.
        while slot.word.load(Ordering::Acquire) >= READER {
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    pub(crate) fn sum(&self, id: u32) -> u32 {
        self.slot(id)
            .map_or(0, |slot| slot.sum.load(Ordering::Relaxed))
    }

    pub(crate) fn set_sum(&self, id: u32, sum: u32, now: u32) {
        if let Some(slot) = self.slot(id) {
            slot.sum.store(sum, Ordering::Relaxed);
            slot.used.store(now, Ordering::Relaxed);
        }
    }

    pub(crate) fn used(&self, id: u32) -> u32 {
        self.slot(id)
            .map_or(0, |slot| slot.used.load(Ordering::Relaxed))
    }
}
