//! The queue of a layer's chunks, from the reading thread to the inflating threads and to the
//! assembling thread, which takes them in order.

use std::collections::VecDeque;
use std::io::Read;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::chunk_permits::ChunkPermit;
use super::cuts::{Cuts, Entry};
use crate::allocation::LARGE_CAPACITY;

/// A part of a layer's bytes. Its memory is reused for another.
#[derive(Debug)]
pub(crate) struct Chunk {
    offset: u64,
    data: Vec<u8>,
    /// What is needed to inflate it ahead without a guess.
    entry: Option<Entry>,
    /// It ends at a checkpoint, and so many high bits of its last byte belong to the next chunk.
    spare_bits: Option<u8>,
    /// Held if it was read before its turn.
    _permit: Option<ChunkPermit>,
    pool: Arc<Pool<Vec<u8>>>,
}

impl Chunk {
    /// How many bytes of the layer come before it.
    pub(crate) const fn offset(&self) -> u64 {
        self.offset
    }

    pub(crate) fn data(&self) -> &[u8] {
        &self.data
    }

    pub(crate) fn end(&self) -> u64 {
        self.offset + self.data.len() as u64
    }

    pub(super) const fn entry(&self) -> Option<&Entry> {
        self.entry.as_ref()
    }

    /// How many bits of it come before the next chunk.
    pub(super) fn bits(&self) -> usize {
        self.data.len() * 8 - usize::from(self.spare_bits.unwrap_or(0))
    }

    /// The same, if it ends at a checkpoint.
    pub(super) fn bits_to_checkpoint(&self) -> Option<usize> {
        self.spare_bits.map(|_| self.bits())
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.data));
    }
}

/// A pool of buffers for reuse, because new memory costs a page fault every 4 KiB.
#[derive(Debug)]
pub(crate) struct Pool<T> {
    free: Mutex<Vec<T>>,
    max: usize,
}

impl<T: Default> Pool<T> {
    pub(crate) const fn new(max: usize) -> Self {
        Self {
            free: Mutex::new(Vec::new()),
            max,
        }
    }

    pub(crate) fn take(&self) -> T {
        self.free.lock().pop().unwrap_or_default()
    }

    pub(crate) fn give_back(&self, used: T) {
        let mut free = self.free.lock();
        if free.len() < self.max {
            free.push(used);
        }
    }

    pub(crate) fn clear(&self) {
        // Freeing takes a while.
        let free = std::mem::take(&mut *self.free.lock());
        drop(free);
    }
}

/// State of the work on a chunk.
#[derive(Debug)]
enum Work<P> {
    /// No thread inflates it yet.
    Open,
    Taken,
    Done(Option<P>),
}

#[derive(Debug)]
struct Slot<P> {
    chunk: Arc<Chunk>,
    work: Work<P>,
}

#[derive(Debug)]
struct State<P> {
    /// Chunks that were read and not assembled yet.
    slots: VecDeque<Slot<P>>,
    /// Number of chunks before them.
    gone: u64,
    read_all: bool,
    /// All threads shall stop.
    over: bool,
}

/// The chunks that are worked on, and what was inflated of them.
#[derive(Debug)]
pub(crate) struct Chunks<P> {
    state: Mutex<State<P>>,
    changed: Condvar,
    /// How many there may be.
    ahead: usize,
}

/// What is to be inflated before its turn; the chunk, and the one after it if there is one.
pub(crate) type Todo = (u64, Arc<Chunk>, Option<Arc<Chunk>>);

impl<P> Chunks<P> {
    pub(crate) fn new(ahead: usize) -> Self {
        Self {
            state: Mutex::new(State {
                slots: VecDeque::new(),
                gone: 0,
                read_all: false,
                over: false,
            }),
            changed: Condvar::new(),
            ahead,
        }
    }

    /// Waits until there is room for a chunk. `false` after [`Chunks::stop`].
    pub(crate) fn wait_for_room(&self) -> bool {
        let mut state = self.state.lock();
        while state.slots.len() >= self.ahead && !state.over {
            self.changed.wait(&mut state);
        }
        !state.over
    }

    /// Waits until no more than `few` chunks are left to assemble. `false` after [`Chunks::stop`].
    pub(super) fn wait_for_few(&self, few: usize) -> bool {
        let mut state = self.state.lock();
        while state.slots.len() > few && !state.over {
            self.changed.wait(&mut state);
        }
        !state.over
    }

    /// Adds a chunk, which is inflated ahead or not.
    pub(crate) fn push(&self, chunk: Chunk, inflate_ahead: bool) {
        let work = if inflate_ahead {
            Work::Open
        } else {
            Work::Done(None)
        };
        let chunk = Arc::new(chunk);
        self.state.lock().slots.push_back(Slot { chunk, work });
        self.changed.notify_all();
    }

    /// There are no more chunks.
    pub(crate) fn end(&self) {
        self.state.lock().read_all = true;
        self.changed.notify_all();
    }

    /// Ends all waiting.
    pub(crate) fn stop(&self) {
        self.state.lock().over = true;
        self.changed.notify_all();
    }

    /// Whether waiting was ended.
    pub(crate) fn is_over(&self) -> bool {
        self.state.lock().over
    }

    /// Waits for a chunk to inflate; `None` when there will be none.
    pub(crate) fn todo(&self) -> Option<Todo> {
        let mut state = self.state.lock();
        loop {
            if state.over {
                return None;
            }
            let open = |slot: &Slot<P>| matches!(slot.work, Work::Open);
            if let Some(at) = state.slots.iter().position(open) {
                let next = state.slots.get(at + 1).map(|slot| Arc::clone(&slot.chunk));
                let is_entered = |slot: &Slot<P>| slot.chunk.entry().is_some();
                let alone = state.slots.get(at).is_some_and(is_entered);
                if next.is_some() || state.read_all || alone {
                    let number = state.gone + at as u64;
                    let slot = state.slots.get_mut(at)?;
                    slot.work = Work::Taken;
                    return Some((number, Arc::clone(&slot.chunk), next));
                }
            } else if state.read_all {
                return None;
            }
            self.changed.wait(&mut state);
        }
    }

    /// Stores the result of the work from [`Chunks::todo`].
    pub(crate) fn done(&self, number: u64, piece: Option<P>) {
        let mut state = self.state.lock();
        let at = usize::try_from(number - state.gone).unwrap_or(usize::MAX);
        if let Some(slot) = state.slots.get_mut(at) {
            slot.work = Work::Done(piece);
        }
        self.changed.notify_all();
    }

    /// Waits for the next chunk to assemble, with what was inflated of it. `None` at the end.
    pub(crate) fn next(&self) -> Option<(Arc<Chunk>, Option<P>)> {
        let mut state = self.state.lock();
        loop {
            if state.over {
                return None;
            }
            let front = state.slots.front_mut();
            if let Some(Slot {
                chunk,
                work: Work::Done(piece),
            }) = front
            {
                let next = (Arc::clone(chunk), piece.take());
                state.slots.pop_front();
                state.gone += 1;
                self.changed.notify_all();
                return Some(next);
            }
            if state.read_all && state.slots.is_empty() {
                return None;
            }
            self.changed.wait(&mut state);
        }
    }
}

/// Reads a layer in chunks of one size, or as they are cut.
#[derive(Debug)]
pub(crate) struct ChunkReader<'e, R> {
    reader: R,
    offset: u64,
    size: usize,
    cuts: Option<Cuts<'e>>,
    /// The last byte that was read.
    last: u8,
    at_end: bool,
    pool: Arc<Pool<Vec<u8>>>,
}

impl<'e, R: Read> ChunkReader<'e, R> {
    pub(crate) fn new(reader: R, size: usize, spare: usize) -> Self {
        Self {
            reader,
            offset: 0,
            size,
            cuts: None,
            last: 0,
            at_end: false,
            pool: Arc::new(Pool::new(spare)),
        }
    }

    /// Cuts the layer where it can be entered.
    pub(super) fn cut(mut self, cuts: Cuts<'e>) -> Self {
        self.cuts = Some(cuts);
        self
    }

    /// Whether the last chunk was read.
    pub(super) const fn is_at_end(&self) -> bool {
        self.at_end
    }

    /// The next chunk, shorter than planned only at the end, and `None` behind it.
    pub(crate) fn read(&mut self) -> std::io::Result<Option<Chunk>> {
        self.read_for(None, usize::MAX)
    }

    /// The same, of at most so many bytes and with a permit.
    pub(super) fn read_for(
        &mut self,
        permit: Option<ChunkPermit>,
        most: usize,
    ) -> std::io::Result<Option<Chunk>> {
        let cut = self.cuts.as_mut().map(|cuts| cuts.next(self.offset, most));
        let size = cut.as_ref().map_or(self.size.min(most), |cut| cut.size);
        let own = || Arc::clone(&self.pool);
        let pool = permit.as_ref().map_or_else(own, ChunkPermit::pool);
        let mut data = pool.take();
        data.reserve(LARGE_CAPACITY.max(size).saturating_sub(data.len()));
        data.resize(size, 0);
        let mut filled = 0;
        while let Some(room) = data.get_mut(filled..).filter(|room| !room.is_empty()) {
            match self.reader.read(room) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.at_end = filled < size;
        if filled == 0 {
            return Ok(None);
        }
        data.truncate(filled);
        let before = std::mem::replace(&mut self.last, data.last().copied().unwrap_or(0));
        let cut = cut.unwrap_or_default();
        let chunk = Chunk {
            offset: self.offset,
            data,
            entry: cut.entry.map(|entry| Entry { before, ..entry }),
            spare_bits: cut.spare_bits.filter(|_| !self.at_end),
            _permit: permit,
            pool,
        };
        self.offset = chunk.end();
        Ok(Some(chunk))
    }
}
