//! Compressed bytes on their way from a source to the threads of a layer.

use std::collections::VecDeque;
use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use super::shares::Units;

/// Bytes that are collected before they are passed on.
pub(crate) const PIECE: usize = 128 << 10;
/// Bytes that are allocated at a time. The daemon has blocks of this size mapped individually and unmapped
/// when freed; smaller ones would stay with the allocator, in the heap of the thread that received them.
const SLAB: usize = (1 << 20) + (64 << 10);
/// Bytes of a slab that are used at least: what is less than a piece moves to the next.
const USED: usize = SLAB - PIECE;

/// The memory that so many bytes take as they come.
pub(crate) const fn memory_of(bytes: u64) -> u64 {
    bytes.div_ceil(USED as u64).saturating_mul(SLAB as u64)
}

/// The bytes that this memory has room for, in one slab at least.
pub(crate) const fn room_in(memory: u64) -> u64 {
    let slabs = memory / SLAB as u64;
    let slabs = if slabs == 0 { 1 } else { slabs };
    slabs.saturating_mul(USED as u64)
}

/// Slabs that were filled, to be filled again when no piece of them is left. New memory costs a page fault
/// every 4 KiB, 0.6 s of a core for each GiB.
#[derive(Debug)]
pub(crate) struct Slabs {
    filled: Mutex<VecDeque<BytesMut>>,
    most: usize,
}

impl Slabs {
    /// Slabs that take no more memory than this while none of them is in use.
    pub(crate) fn new(memory: u64) -> Self {
        Self {
            filled: Mutex::default(),
            most: usize::try_from(memory / SLAB as u64).unwrap_or(usize::MAX),
        }
    }

    /// An empty slab with room for `needed` bytes.
    fn take(&self, needed: usize) -> BytesMut {
        let needed = needed.max(SLAB);
        let mut filled = self.filled.lock();
        let free = filled.iter_mut().position(|slab| slab.try_reclaim(needed));
        let slab = free.and_then(|free| filled.remove(free));
        slab.unwrap_or_else(|| BytesMut::with_capacity(needed))
    }

    fn give_back(&self, mut slab: BytesMut) {
        slab.clear();
        let mut filled = self.filled.lock();
        if filled.len() < self.most {
            filled.push_back(slab);
        }
    }

    /// Frees them.
    pub(crate) fn clear(&self) {
        let filled = std::mem::take(&mut *self.filled.lock());
        drop(filled);
    }
}

/// Some of a layer's compressed bytes, as they arrived.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) bytes: Bytes,
    /// The memory that they take, of the budget; shared by all pieces of a request.
    pub(crate) _memory: Option<Arc<Units>>,
}

/// Collects the bytes of a response into pieces. The buffers that they come in are much larger than
/// what is in them, and would be held until the last of it is used.
#[derive(Debug)]
pub(crate) struct PieceBuffer {
    /// `None` before the first bytes.
    slab: Option<BytesMut>,
    slabs: Arc<Slabs>,
}

impl PieceBuffer {
    pub(crate) fn new(slabs: Arc<Slabs>) -> Self {
        Self { slab: None, slabs }
    }

    /// Adds bytes, and returns as many as make a piece.
    pub(crate) fn add(&mut self, bytes: &[u8]) -> Option<Bytes> {
        let slab = match self.slab.take() {
            Some(slab) if slab.len() + bytes.len() <= slab.capacity() => slab,
            full => {
                let rest = full.as_deref().unwrap_or_default();
                let mut slab = self.slabs.take(rest.len() + bytes.len());
                slab.extend_from_slice(rest);
                if let Some(full) = full {
                    self.slabs.give_back(full);
                }
                slab
            }
        };
        let slab = self.slab.insert(slab);
        slab.extend_from_slice(bytes);
        (slab.len() >= PIECE).then(|| slab.split().freeze())
    }

    /// Returns the bytes that are left.
    pub(crate) fn finish(self) -> Bytes {
        let Some(mut slab) = self.slab else {
            return Bytes::new();
        };
        let rest = slab.split().freeze();
        self.slabs.give_back(slab);
        rest
    }
}

/// Reads pieces as they come. Their end is that of the channel.
pub(crate) struct PieceReader {
    pieces: Receiver<Arc<Piece>>,
    current: Option<Arc<Piece>>,
    /// Position in the current piece.
    at: usize,
    /// Bytes that were read before, in front of the rest.
    head: Vec<u8>,
}

impl PieceReader {
    pub(crate) fn new(pieces: Receiver<Arc<Piece>>) -> Self {
        Self {
            pieces,
            current: None,
            at: 0,
            head: Vec::new(),
        }
    }

    /// The first `length` bytes, or all if there are fewer; they are read again later.
    pub(crate) fn peek(&mut self, length: usize) -> io::Result<&[u8]> {
        let mut head = Vec::with_capacity(length);
        self.by_ref().take(length as u64).read_to_end(&mut head)?;
        self.head = head;
        Ok(&self.head)
    }

    fn rest(&self) -> Option<&[u8]> {
        let rest = self.current.as_ref()?.bytes.get(self.at..);
        rest.filter(|rest| !rest.is_empty())
    }

    /// Moves to the next byte. `false` at the end.
    fn advance(&mut self) -> bool {
        loop {
            if self.rest().is_some() {
                return true;
            }
            self.at = 0;
            // The memory of the one before is returned first.
            self.current = None;
            match self.pieces.recv() {
                Ok(piece) => self.current = Some(piece),
                Err(_) => return false,
            }
        }
    }
}

impl BufRead for PieceReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if !self.head.is_empty() {
            return Ok(&self.head);
        }
        if !self.advance() {
            return Ok(&[]);
        }
        Ok(self.rest().unwrap_or_default())
    }

    fn consume(&mut self, amount: usize) {
        if self.head.is_empty() {
            self.at += amount;
        } else {
            self.head.drain(..amount.min(self.head.len()));
        }
    }
}

impl Read for PieceReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(into.len());
        let (Some(from), Some(to)) = (available.get(..length), into.get_mut(..length)) else {
            return Ok(0);
        };
        to.copy_from_slice(from);
        self.consume(length);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_hold_all_bytes_in_order_whatever_parts_they_come_in() {
        let truth: Vec<u8> = (0..5_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
        let slabs = Arc::new(Slabs::new(8 * SLAB as u64));
        for length in [1000, PIECE - 1, PIECE, 300_000, 3 << 20] {
            let mut buffer = PieceBuffer::new(Arc::clone(&slabs));
            let parts = truth.chunks(length);
            let mut pieces: Vec<Bytes> = parts.filter_map(|part| buffer.add(part)).collect();
            assert!(pieces.iter().all(|piece| piece.len() >= PIECE));
            pieces.push(buffer.finish());
            assert!(pieces.concat() == truth, "{length}");
        }
        assert!(PieceBuffer::new(slabs).finish().is_empty());
    }

    #[test]
    fn memory_is_used_again_when_nothing_of_it_is_left() {
        let slabs = Arc::new(Slabs::new(2 * SLAB as u64));
        let fill = |with: u8| {
            let mut buffer = PieceBuffer::new(Arc::clone(&slabs));
            let piece = buffer.add(&[with; PIECE]).unwrap();
            (piece, buffer.finish())
        };
        let (first, _) = fill(1);
        let at = first.as_ptr();
        // It is in use.
        let (second, _) = fill(2);
        assert_ne!(second.as_ptr(), at);
        assert!(first.iter().all(|byte| *byte == 1));
        drop(first);
        let (third, _) = fill(3);
        assert_eq!(third.as_ptr(), at);
        assert_eq!(slabs.filled.lock().len(), 2);
        slabs.clear();
        assert!(second.iter().all(|byte| *byte == 2) && third.iter().all(|byte| *byte == 3));
    }

    #[test]
    fn what_is_counted_is_no_less_than_what_is_taken() {
        for bytes in [1, PIECE, USED, USED + 1, 2 * USED, 20 * USED + 7] {
            let slabs = Arc::new(Slabs::new(u64::MAX));
            let mut buffer = PieceBuffer::new(Arc::clone(&slabs));
            // Parts that leave as much as possible unused.
            let mut pieces = Vec::new();
            for part in vec![7; bytes].chunks(PIECE - 1) {
                pieces.extend(buffer.add(part));
            }
            pieces.push(buffer.finish());
            let taken = slabs.filled.lock().len();
            assert!((taken * SLAB) as u64 <= memory_of(bytes as u64) + SLAB as u64);
        }
        assert!(memory_of(room_in(10 << 20)) <= 10 << 20);
    }
}
