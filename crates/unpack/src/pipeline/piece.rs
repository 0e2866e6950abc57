//! Compressed bytes on their way from a source to the threads of a layer.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use bytes::{Bytes, BytesMut};

use super::shares::Units;

/// Bytes that are collected before they are passed on.
pub(crate) const PIECE: usize = 128 << 10;
/// Bytes that are allocated at a time. Blocks of this size are mapped individually and unmapped when
/// freed; smaller ones would stay with the allocator, in the heap of the thread that received them.
const SLAB: usize = 2 << 20;

/// Some of a layer's compressed bytes, as they arrived.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) bytes: Bytes,
    /// The memory that they take, of the budget; shared by all pieces of a request.
    pub(crate) _memory: Option<Arc<Units>>,
}

/// Collects the bytes of a response into pieces. The buffers that they come in are much larger than
/// what is in them, and would be held until the last of it is used.
#[derive(Debug, Default)]
pub(crate) struct PieceBuffer {
    slab: BytesMut,
}

impl PieceBuffer {
    /// Adds bytes, and returns as many as make a piece.
    pub(crate) fn add(&mut self, bytes: &[u8]) -> Option<Bytes> {
        let needed = self.slab.len() + bytes.len();
        if needed > self.slab.capacity() {
            let mut slab = BytesMut::with_capacity(needed.max(SLAB));
            slab.extend_from_slice(&self.slab);
            self.slab = slab;
        }
        self.slab.extend_from_slice(bytes);
        (self.slab.len() >= PIECE).then(|| self.slab.split().freeze())
    }

    /// Returns the bytes that are left.
    pub(crate) fn finish(self) -> Bytes {
        self.slab.freeze()
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
        for length in [1000, PIECE - 1, PIECE, 300_000, 3 << 20] {
            let mut buffer = PieceBuffer::default();
            let parts = truth.chunks(length);
            let mut pieces: Vec<Bytes> = parts.filter_map(|part| buffer.add(part)).collect();
            assert!(pieces.iter().all(|piece| piece.len() >= PIECE));
            pieces.push(buffer.finish());
            assert!(pieces.concat() == truth, "{length}");
        }
        assert!(PieceBuffer::default().finish().is_empty());
    }
}
