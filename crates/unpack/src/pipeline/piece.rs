//! Compressed bytes on their way from a source to the threads of a layer.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use bytes::Bytes;

use super::shares::Units;

/// Bytes that are collected before they are passed on.
pub(crate) const PIECE: usize = 128 << 10;

/// Some of a layer's compressed bytes, as they arrived.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) parts: Vec<Bytes>,
    /// The memory that they take, of the budget; shared by all pieces of a request.
    pub(crate) _memory: Option<Arc<Units>>,
}

impl Piece {
    pub(crate) fn len(&self) -> u64 {
        self.parts.iter().map(|part| part.len() as u64).sum()
    }
}

/// Reads pieces as they come. Their end is that of the channel.
pub(crate) struct PieceReader {
    pieces: Receiver<Arc<Piece>>,
    current: Option<Arc<Piece>>,
    /// Position in the current piece: a part, and an offset in it.
    part: usize,
    at: usize,
    /// Bytes that were read before, in front of the rest.
    head: Vec<u8>,
}

impl PieceReader {
    pub(crate) fn new(pieces: Receiver<Arc<Piece>>) -> Self {
        Self {
            pieces,
            current: None,
            part: 0,
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
        let part = self.current.as_ref()?.parts.get(self.part)?;
        part.get(self.at..).filter(|rest| !rest.is_empty())
    }

    /// Moves to the next byte. `false` at the end.
    fn advance(&mut self) -> bool {
        loop {
            if self.rest().is_some() {
                return true;
            }
            self.at = 0;
            self.part += 1;
            let parts = self.current.as_ref().map_or(0, |piece| piece.parts.len());
            if self.part < parts {
                continue;
            }
            self.part = 0;
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
