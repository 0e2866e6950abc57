//! Inflation of a chunk from the middle of a gzip layer before what precedes it is known.
//!
//! A block is searched for in the chunk, and everything from there to the first block of the next
//! chunk is inflated: with markers for bytes of the unknown window ([`super::deflate`]) until the last
//! 32 KiB have none, then by zlib-rs. Whether a block does start there shows when the preceding
//! chunk's last block ends: there, or this work is thrown away.
//!
//! With a checkpoint ([`super::cuts`]) there is nothing to search and no marker. Its window is
//! compared when the preceding chunk's output is known.

use crate::allocation::LARGE_CAPACITY;
use crate::checkpoint::WINDOW_SIZE;
use crate::inflate::{Inflater, State, Stop, Wrapping, unused_bits};
use crate::parallel::Chunk;
use crate::parallel::cuts::{CHUNK_OUTPUT, Entry};
use crate::parallel::deflate::{
    BitReader, Block, BlockDecoder, BlockError, BlockKind, MARKER, find_block,
};

/// How far into a chunk a block is searched for, in bytes. Searching is slow, and where there is none
/// for so long, as in stored blocks, inflating in order is fast.
const SEARCH: usize = 512 << 10;

/// How much of the next chunk is looked at for the end of a block, in bytes.
const SEAM: usize = 1 << 20;

/// How many values with markers, and how many bytes of other output, memory is kept for: most chunks
/// have no more.
const USUAL_MARKED: usize = 1 << 20;
const USUAL_OUTPUT: usize = 8 << 20;

/// How many block ends of a chunk are kept; with more, the blocks are tiny.
const MAX_BOUNDARIES: usize = 1 << 16;

/// Between two blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Boundary {
    /// The compressed bits before it.
    pub(crate) bit: u64,
    /// The uncompressed bytes before it.
    pub(crate) output: usize,
}

/// What was inflated of a layer from the start of a block on.
#[derive(Debug)]
pub(crate) struct Piece {
    /// The layer's bits before the first block.
    pub(crate) start: u64,
    /// The layer's bits before what comes next: a block, or, with `ended`, padding and a trailer.
    pub(crate) end: u64,
    /// The byte that `end` is in, if it is in the middle of one.
    pub(crate) end_byte: u8,
    /// The last block of a gzip member is the last here.
    pub(crate) ended: bool,
    /// The ends of blocks, with output counted from `start`; not the end of a member's last one.
    pub(crate) boundaries: Vec<Boundary>,
    pub(crate) buffers: Buffers,
    /// How much of `buffers.marked` is the beginning of the output.
    pub(crate) marked: usize,
    /// Checksum of `output`.
    pub(crate) checksum: crc32fast::Hasher,
    /// The window of `output` comes from a checkpoint.
    pub(crate) entered: bool,
}

/// The memory that a piece's output is in; used again for other pieces.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    /// The markers of a whole window, then the beginning of the output with its markers.
    marked: Vec<u16>,
    /// The last window of that, then the rest of the output.
    output: Vec<u8>,
    /// How much of each was written to.
    marked_used: usize,
    output_used: usize,
}

impl Buffers {
    /// Capacity to keep: more than usual is freed.
    fn usual(mut self) -> Self {
        if self.marked_used > USUAL_MARKED {
            self.marked = Vec::new();
        }
        if self.output_used > USUAL_OUTPUT {
            self.output = Vec::new();
        }
        self
    }
}

impl Piece {
    /// The beginning of the output, with markers.
    pub(crate) fn marked(&self) -> &[u16] {
        let all = self.buffers.marked.get(WINDOW_SIZE..).unwrap_or_default();
        all.get(..self.marked).unwrap_or_default()
    }

    /// The memory, to be used again.
    pub(crate) fn into_buffers(self) -> Buffers {
        self.buffers.usual()
    }

    /// The rest of the output, with a window before it; empty if there is no more.
    pub(crate) fn windowed(&self) -> &[u8] {
        &self.buffers.output
    }
}

/// Inflates pieces.
#[derive(Debug)]
pub(crate) struct Speculator {
    decoder: BlockDecoder,
    inflater: Inflater,
    /// How many bytes a piece's output may take in memory.
    memory: usize,
}

/// Where inflating ended, in bits of the chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct End {
    bit: usize,
    /// Behind the last block of a member.
    ended: bool,
}

/// Why inflating did not come to the next chunk's first block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stopped {
    /// At the end of the input, or of what may be kept. What is whole is of use.
    Unfinished,
    /// What was taken for a block is none, or the layer is damaged.
    Invalid,
}

impl From<BlockError> for Stopped {
    fn from(error: BlockError) -> Self {
        match error {
            BlockError::Invalid => Self::Invalid,
            BlockError::InputOver | BlockError::OutputFull => Self::Unfinished,
        }
    }
}

impl Speculator {
    /// `None` without memory.
    pub(crate) fn new(memory: usize) -> Option<Self> {
        Some(Self {
            decoder: BlockDecoder::new(),
            inflater: Inflater::new(Wrapping::Raw).ok()?,
            memory,
        })
    }

    /// Inflates what begins in a chunk, which is followed by the bytes `next`. Gives the memory back when
    /// there is nothing to be had.
    pub(crate) fn inflate(
        &mut self,
        chunk: &Chunk,
        next: &[u8],
        mut buffers: Buffers,
    ) -> Result<Piece, Buffers> {
        let data = chunk.data();
        let Some(start) = find_block(data, SEARCH, &mut self.decoder) else {
            return Err(buffers);
        };
        let mut work = Work {
            data,
            next,
            until: chunk.bits_to_checkpoint(),
            memory: self.memory,
            boundaries: Vec::new(),
            marked: 0,
            buffers: &mut buffers,
        };
        let end = work.run(start, self);
        let done = (end, work.boundaries, work.marked);
        piece(chunk.offset(), [data, next], start as u64, done, buffers)
    }

    /// Inflates a chunk from its checkpoint to its end. Gives the memory back when there is nothing to be
    /// had.
    pub(crate) fn enter(
        &mut self,
        chunk: &Chunk,
        entry: &Entry,
        mut buffers: Buffers,
    ) -> Result<Piece, Buffers> {
        let mut work = Work {
            data: chunk.data(),
            next: &[],
            until: Some(chunk.bits()),
            memory: self.memory.max(CHUNK_OUTPUT),
            boundaries: Vec::new(),
            marked: 0,
            buffers: &mut buffers,
        };
        let end = work.at_checkpoint(entry, &mut self.inflater);
        let done = (end, work.boundaries, 0);
        let mut piece = piece(chunk.offset(), [chunk.data(), &[]], 0, done, buffers)?;
        piece.start -= u64::from(entry.bits);
        piece.entered = true;
        Ok(piece)
    }
}

/// Makes a piece of what was inflated of a chunk, and gives the memory back if that is nothing.
fn piece(
    offset: u64,
    [data, next]: [&[u8]; 2],
    start: u64,
    (end, boundaries, mut marked): (Result<End, Stopped>, Vec<Boundary>, usize),
    mut buffers: Buffers,
) -> Result<Piece, Buffers> {
    buffers.output_used = buffers.output.len();
    let end = match (end, boundaries.last()) {
        (Ok(end), _) => end,
        (Err(Stopped::Unfinished), Some(last)) => {
            marked = marked.min(last.output);
            let rest = last.output - marked;
            let len = if rest > 0 { WINDOW_SIZE + rest } else { 0 };
            buffers.output.truncate(len);
            End {
                bit: usize::try_from(last.bit).unwrap_or(0),
                ended: false,
            }
        }
        (Err(_), _) => return Err(buffers.usual()),
    };
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(buffers.output.get(WINDOW_SIZE..).unwrap_or_default());
    let before = offset * 8;
    let boundaries = boundaries.into_iter().map(|boundary| Boundary {
        bit: before + boundary.bit,
        ..boundary
    });
    Ok(Piece {
        start: before + start,
        end: before + end.bit as u64,
        end_byte: byte_of(data, next, end.bit / 8),
        ended: end.ended,
        boundaries: boundaries.collect(),
        marked,
        buffers,
        checksum,
        entered: false,
    })
}

/// The `at`-th byte of a chunk and what comes after it, or zero.
fn byte_of(data: &[u8], next: &[u8], at: usize) -> u8 {
    let byte = match at.checked_sub(data.len()) {
        None => data.get(at),
        Some(at) => next.get(at),
    };
    byte.copied().unwrap_or(0)
}

/// One piece in the making.
struct Work<'w> {
    data: &'w [u8],
    next: &'w [u8],
    /// The bit at which the next chunk's piece begins, if that is known.
    until: Option<usize>,
    memory: usize,
    boundaries: Vec<Boundary>,
    marked: usize,
    buffers: &'w mut Buffers,
}

impl Work<'_> {
    fn run(&mut self, start: usize, tools: &mut Speculator) -> Result<End, Stopped> {
        let mut marked = std::mem::take(&mut self.buffers.marked);
        let mut at = WINDOW_SIZE;
        let end = self.with_markers(start, &mut tools.decoder, &mut marked, &mut at);
        self.buffers.marked_used = at;
        self.buffers.output.clear();
        if end == Ok(None) {
            // The last window has no markers, so it is one of bytes.
            let window = marked.get(self.marked..self.marked + WINDOW_SIZE);
            let window = window.unwrap_or_default().iter();
            self.buffers.output.reserve(LARGE_CAPACITY);
            self.buffers
                .output
                .extend(window.map(|value| value.to_le_bytes()[0]));
        }
        self.buffers.marked = marked;
        match end? {
            Some(end) => Ok(end),
            None => self.without_markers(&mut tools.inflater),
        }
    }

    /// Inflates from `start` to behind the first `at` values until the last window has no markers;
    /// `None` then.
    fn with_markers(
        &mut self,
        start: usize,
        decoder: &mut BlockDecoder,
        marked: &mut Vec<u16>,
        at: &mut usize,
    ) -> Result<Option<End>, Stopped> {
        if marked.is_empty() {
            *marked = vec![0; LARGE_CAPACITY / 2];
        }
        let limit = (WINDOW_SIZE + self.memory / 2).min(marked.len());
        let marked = marked.get_mut(..limit).unwrap_or_default();
        let window = marked.get_mut(..WINDOW_SIZE).unwrap_or_default();
        window
            .iter_mut()
            .zip(MARKER..=u16::MAX)
            .for_each(|(value, marker)| *value = marker);

        let mut bit = start;
        // How much there is up to the last marker.
        let mut unknown = WINDOW_SIZE;
        // Around the end of the chunk, from the bit that comes first.
        let mut seam: Option<(usize, Vec<u8>)> = None;
        loop {
            let (before, data) = match &seam {
                Some((before, seam)) => (*before, seam.as_slice()),
                None => (0, self.data),
            };
            let mut bits = BitReader::new(data, bit - before);
            let block = Block::from_bits(bits.take(3));
            let begin = *at;
            match decoder.decode(block.kind, &mut bits, marked, at) {
                Err(BlockError::InputOver) if seam.is_none() => {
                    let rest = self.data.get(bit / 8..).unwrap_or_default();
                    let next = self.next.get(..SEAM.min(self.next.len()));
                    seam = Some((bit / 8 * 8, [rest, next.unwrap_or_default()].concat()));
                    *at = begin;
                    continue;
                }
                done => done?,
            }
            bit = before + bits.position();
            self.marked = *at - WINDOW_SIZE;
            if block.last {
                return Ok(Some(End { bit, ended: true }));
            }
            if self.boundary(bit, self.marked)? {
                return Ok(Some(End { bit, ended: false }));
            }
            let block = marked.get(begin..*at).unwrap_or_default();
            if let Some(last) = block.iter().rposition(|value| *value >= MARKER) {
                unknown = begin + last + 1;
            }
            if *at - unknown >= WINDOW_SIZE {
                return Ok(None);
            }
        }
    }

    /// Inflates from the last boundary on, whose window is in the output.
    fn without_markers(&mut self, inflater: &mut Inflater) -> Result<End, Stopped> {
        let bit = self.boundaries.last().map_or(0, |last| last.bit);
        let bit = usize::try_from(bit).map_err(|_| Stopped::Invalid)?;
        let first = byte_of(self.data, self.next, bit / 8);
        let output = &mut self.buffers.output;
        let prepared = inflater.enter(unused_bits(bit as u64), first, output);
        prepared.map_err(|_| Stopped::Invalid)?;
        self.blocks(inflater, bit.div_ceil(8))
    }

    /// Inflates from a checkpoint on.
    fn at_checkpoint(&mut self, entry: &Entry, inflater: &mut Inflater) -> Result<End, Stopped> {
        let output = &mut self.buffers.output;
        output.clear();
        output.reserve(LARGE_CAPACITY);
        output.extend_from_slice(&entry.window);
        let prepared = inflater.enter(entry.bits, entry.before, output);
        prepared.map_err(|_| Stopped::Invalid)?;
        self.blocks(inflater, 0)
    }

    /// Inflates from the byte `at` on.
    fn blocks(&mut self, inflater: &mut Inflater, mut at: usize) -> Result<End, Stopped> {
        let max = WINDOW_SIZE + self.memory.saturating_sub(2 * self.marked);
        loop {
            let input = match at.checked_sub(self.data.len()) {
                None => self.data.get(at..),
                Some(at) => self.next.get(at..),
            };
            let input = input.unwrap_or_default();
            let output = &mut self.buffers.output;
            let step = inflater.append(input, output, max, Stop::AtBlocks);
            let step = step.map_err(|_| Stopped::Invalid)?;
            at += step.consumed;
            let rest = self.buffers.output.len() - WINDOW_SIZE;
            match step.state {
                State::End => {
                    return Ok(End {
                        bit: at * 8,
                        ended: true,
                    });
                }
                State::Boundary { bits } => {
                    // The bits before a checkpoint's first byte are not the chunk's.
                    let bit = (at * 8).saturating_sub(usize::from(bits));
                    if self.boundary(bit, self.marked + rest)? {
                        return Ok(End { bit, ended: false });
                    }
                }
                State::Inside if step.consumed == 0 && step.produced == 0 => {
                    return Err(Stopped::Unfinished);
                }
                State::Inside => {}
            }
        }
    }

    /// Records the end of a block. Returns whether the next chunk's piece begins there, as far as is
    /// known.
    fn boundary(&mut self, bit: usize, output: usize) -> Result<bool, Stopped> {
        self.boundaries.push(Boundary {
            bit: bit as u64,
            output,
        });
        if self.until.is_some_and(|until| bit >= until) {
            return Ok(true);
        }
        if bit >= self.data.len() * 8 {
            if bit + 3 > (self.data.len() + self.next.len()) * 8 {
                return Err(Stopped::Unfinished);
            }
            let byte = |at| usize::from(byte_of(self.data, self.next, at));
            let bits = (byte(bit / 8) | byte(bit / 8 + 1) << 8) >> (bit % 8);
            let block = Block::from_bits(bits);
            // What `find_block` looks for, if it is near.
            if block.kind == BlockKind::Dynamic && !block.last {
                return Ok(true);
            }
        }
        if self.boundaries.len() >= MAX_BOUNDARIES {
            return Err(Stopped::Unfinished);
        }
        Ok(false)
    }
}
