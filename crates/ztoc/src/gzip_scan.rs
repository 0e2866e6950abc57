//! Inflating a gzip layer in order, and taking checkpoints on the way.

use crate::BuildError;
use crate::checkpoint::{Checkpoint, GzipCheckpoints, WINDOW_SIZE};
use crate::inflate::{GZIP_TRAILER, Inflater, State, Stop, Wrapping, unused_bits};
use crate::parallel::{MARKER, Piece};

/// Size of the output buffer without the window that is kept before it, in bytes.
const OUTPUT: usize = 256 << 10;

/// A gzip layer that is being inflated.
#[derive(Debug)]
pub(crate) struct GzipScanner {
    inflater: Inflater,
    /// The window, then the output since the buffer was last full. Zeros stand in front.
    buffer: Box<[u8]>,
    /// Position in `buffer` of the next output; at least `WINDOW_SIZE`.
    at: usize,
    phase: Phase,
    total_in: u64,
    /// Where what is being read starts: a header, block or trailer.
    part: u64,
    total_out: u64,
    /// The output of the last checkpoint.
    last: u64,
    members: u64,
    /// The checksum of the open member, and the length of its output.
    checksum: crc32fast::Hasher,
    member_out: u64,
    checkpoints: GzipCheckpoints,
    /// Whether checkpoints are taken.
    takes_checkpoints: bool,
}

/// What comes next.
#[derive(Debug, Clone, Copy)]
enum Phase {
    /// A member's first byte, or the layer's end.
    Between,
    /// The rest of a member's header.
    Header,
    /// Blocks.
    Blocks(BlockPosition),
    /// What is left of a member's trailer.
    Trailer {
        bytes: [u8; GZIP_TRAILER],
        filled: usize,
    },
}

/// Where among a member's blocks.
#[derive(Debug, Clone, Copy)]
enum BlockPosition {
    Inside,
    /// Before a block, whose first bits are the `bits` high bits of the last byte.
    Boundary {
        bits: u8,
    },
    /// The same, and the inflater is elsewhere. With the last byte.
    Adopted {
        bits: u8,
        byte: u8,
    },
}

/// What is done with output.
pub(crate) trait Sink: FnMut(&[u8]) -> Result<(), BuildError> {}
impl<F: FnMut(&[u8]) -> Result<(), BuildError>> Sink for F {}

impl GzipScanner {
    pub(crate) fn new(span_size: u64) -> Result<Self, BuildError> {
        let inflater = Inflater::new(Wrapping::Gzip).map_err(|invalid| BuildError::Gzip {
            reason: invalid.0,
            at: 0,
        })?;
        Ok(Self {
            inflater,
            buffer: vec![0; WINDOW_SIZE + OUTPUT].into_boxed_slice(),
            at: WINDOW_SIZE,
            phase: Phase::Between,
            total_in: 0,
            part: 0,
            total_out: 0,
            last: 0,
            members: 0,
            checksum: crc32fast::Hasher::new(),
            member_out: 0,
            checkpoints: GzipCheckpoints::new(span_size),
            takes_checkpoints: true,
        })
    }

    /// A scanner that only inflates.
    pub(crate) fn without_checkpoints() -> Result<Self, BuildError> {
        Ok(Self {
            takes_checkpoints: false,
            ..Self::new(u64::MAX)?
        })
    }

    /// The checkpoints that were taken so far.
    pub(crate) fn checkpoints(&self) -> &[Checkpoint] {
        &self.checkpoints.points
    }

    /// How many compressed bytes were taken in.
    pub(crate) const fn total_in(&self) -> u64 {
        self.total_in
    }

    /// Takes in the next compressed bytes and hands all output to `sink`, piece by piece. Stops early
    /// between two blocks when that is not before the `until`-th bit of the layer.
    pub(crate) fn write(
        &mut self,
        mut input: &[u8],
        until: u64,
        mut sink: impl Sink,
    ) -> Result<(), BuildError> {
        loop {
            if self.boundary_at().is_some_and(|bit| bit >= until) {
                return Ok(());
            }
            // Among blocks, output may be left of input that was taken in earlier.
            let in_blocks = matches!(self.phase, Phase::Blocks(_));
            if input.is_empty() && !in_blocks {
                return Ok(());
            }
            let consumed = match self.phase {
                Phase::Between => {
                    self.reset(Wrapping::Gzip)?;
                    self.phase = Phase::Header;
                    self.part = self.total_in;
                    continue;
                }
                Phase::Header => self.header(input)?,
                Phase::Blocks(position) => match self.blocks(position, input, &mut sink)? {
                    Some(consumed) => consumed,
                    None if input.is_empty() => return Ok(()),
                    // With input there and room for output that cannot be.
                    None => return Err(self.invalid("it is stuck")),
                },
                Phase::Trailer { bytes, filled } => self.trailer(bytes, filled, input)?,
            };
            input = input.get(consumed..).unwrap_or_default();
        }
    }

    fn reset(&mut self, wrapping: Wrapping) -> Result<(), BuildError> {
        let reset = self.inflater.reset(wrapping);
        reset.map_err(|invalid| self.invalid(invalid.0))
    }

    /// Reads on in a member's header and returns how much of it there was.
    fn header(&mut self, input: &[u8]) -> Result<usize, BuildError> {
        let step = self.inflater.step(input, &mut [0; 1], Stop::AtBlocks);
        let step = step.map_err(|invalid| self.invalid(invalid.0))?;
        self.total_in += step.consumed as u64;
        match step.state {
            State::Boundary { .. } => {
                self.reset(Wrapping::Raw)?;
                self.checksum = crc32fast::Hasher::new();
                self.member_out = 0;
                self.boundary(0, None);
            }
            State::Inside if step.consumed > 0 => {}
            State::Inside | State::End => return Err(self.invalid("it is stuck")),
        }
        Ok(step.consumed)
    }

    /// Inflates, and returns how much of the input that took; `None` without any progress.
    fn blocks(
        &mut self,
        position: BlockPosition,
        input: &[u8],
        sink: &mut impl Sink,
    ) -> Result<Option<usize>, BuildError> {
        if let BlockPosition::Adopted { bits, byte } = position {
            let window = self.buffer.get(self.at - WINDOW_SIZE..self.at);
            let entered = self.inflater.enter(bits, byte, window.unwrap_or_default());
            entered.map_err(|invalid| self.invalid(invalid.0))?;
        }
        self.make_room();
        let room = self.buffer.get_mut(self.at..).unwrap_or_default();
        let step = self.inflater.step(input, room, Stop::AtBlocks);
        let step = step.map_err(|invalid| self.invalid(invalid.0))?;
        self.total_in += step.consumed as u64;
        self.output(step.produced, sink)?;
        match step.state {
            State::End => self.start_of_trailer(),
            State::Boundary { bits } => self.boundary(bits, None),
            State::Inside => {
                self.phase = Phase::Blocks(BlockPosition::Inside);
                if step.consumed == 0 && step.produced == 0 {
                    return Ok(None);
                }
            }
        }
        Ok(Some(step.consumed))
    }

    /// Keeps a window when there is no room behind it.
    fn make_room(&mut self) {
        if self.at == self.buffer.len() {
            self.buffer.copy_within(self.at - WINDOW_SIZE.., 0);
            self.at = WINDOW_SIZE;
        }
    }

    /// Takes note of the next `len` bytes in the buffer.
    fn output(&mut self, len: usize, sink: &mut impl Sink) -> Result<(), BuildError> {
        let output = self.buffer.get(self.at..self.at + len).unwrap_or_default();
        self.checksum.update(output);
        self.member_out += len as u64;
        self.total_out += len as u64;
        self.at += len;
        sink(output)
    }

    /// At the end of a block, not a member's last, or behind a gzip header. The window is at the end
    /// of what is in the buffer unless it is given.
    fn boundary(&mut self, bits: u8, window: Option<&[u8]>) {
        self.phase = Phase::Blocks(BlockPosition::Boundary { bits });
        self.part = self.total_in - u64::from(bits > 0);
        let is_due = self.total_out == 0 || self.total_out - self.last > self.checkpoints.span_size;
        if self.takes_checkpoints && is_due {
            let in_buffer = self.buffer.get(self.at - WINDOW_SIZE..self.at);
            let point = Checkpoint {
                input: self.total_in,
                output: self.total_out,
                bits,
            };
            let window = window.or(in_buffer).unwrap_or_default();
            self.checkpoints.push(point, window);
            self.last = self.total_out;
        }
    }

    /// The bits of the layer before the next block, if all blocks before it are whole.
    pub(crate) fn boundary_at(&self) -> Option<u64> {
        match self.phase {
            Phase::Blocks(
                BlockPosition::Boundary { bits } | BlockPosition::Adopted { bits, .. },
            ) => Some(self.total_in * 8 - u64::from(bits)),
            _ => None,
        }
    }

    fn start_of_trailer(&mut self) {
        self.part = self.total_in;
        self.phase = Phase::Trailer {
            bytes: [0; GZIP_TRAILER],
            filled: 0,
        };
    }

    /// Reads on in a member's trailer and returns how much of it there was.
    fn trailer(
        &mut self,
        mut bytes: [u8; GZIP_TRAILER],
        filled: usize,
        input: &[u8],
    ) -> Result<usize, BuildError> {
        let room = bytes.get_mut(filled..).unwrap_or_default();
        let count = room.len().min(input.len());
        room.iter_mut()
            .zip(input)
            .for_each(|(to, from)| *to = *from);
        self.total_in += count as u64;
        let filled = filled + count;
        self.phase = Phase::Trailer { bytes, filled };
        if filled == GZIP_TRAILER {
            let [a, b, c, d, len @ ..] = bytes;
            let checksum = std::mem::take(&mut self.checksum).finalize();
            if u32::from_le_bytes([a, b, c, d]) != checksum {
                return Err(self.invalid("incorrect data check"));
            }
            // Of the length there are the low 32 bits.
            if u64::from(u32::from_le_bytes(len)) != self.member_out & 0xffff_ffff {
                return Err(self.invalid("incorrect length check"));
            }
            self.members += 1;
            self.phase = Phase::Between;
        }
        Ok(count)
    }

    /// Appends what was inflated elsewhere, if that begins at this position. Its output goes to `sink`
    /// as if it had been inflated here.
    pub(crate) fn adopt(&mut self, piece: &Piece, mut sink: impl Sink) -> Result<bool, BuildError> {
        // Matches must not reach back behind the member's start.
        let has_window = self.member_out >= WINDOW_SIZE as u64;
        if self.boundary_at() != Some(piece.start) || !has_window {
            return Ok(false);
        }
        let window = self.buffer.get(self.at - WINDOW_SIZE..self.at);
        if piece.entered && piece.windowed().get(..WINDOW_SIZE) != window {
            return Ok(false);
        }
        let total_out = self.total_out;
        let mut boundaries = piece.boundaries.iter().peekable();
        // The part with markers goes through the buffer.
        let table = self.markers();
        let (mut marked, mut done) = (piece.marked(), 0);
        loop {
            while let Some(boundary) = boundaries.next_if(|next| next.output == done) {
                self.total_in = boundary.bit.div_ceil(8);
                self.boundary(unused_bits(boundary.bit), None);
            }
            if marked.is_empty() {
                break;
            }
            self.make_room();
            let room = self.buffer.get_mut(self.at..).unwrap_or_default();
            let to_boundary = boundaries
                .peek()
                .map_or(usize::MAX, |next| next.output - done);
            let len = marked.len().min(room.len()).min(to_boundary);
            let (now, later) = marked.split_at(len);
            room.iter_mut()
                .zip(now)
                .for_each(|(to, value)| *to = table[usize::from(*value)]);
            self.output(len, &mut sink)?;
            (marked, done) = (later, done + len);
        }
        if let Some((_, output)) = piece.windowed().split_at_checked(WINDOW_SIZE) {
            let before = self.total_out;
            for boundary in boundaries {
                self.total_out = total_out + boundary.output as u64;
                self.total_in = boundary.bit.div_ceil(8);
                let end = WINDOW_SIZE + boundary.output - done;
                let window = piece.windowed().get(end - WINDOW_SIZE..end);
                self.boundary(unused_bits(boundary.bit), window);
            }
            self.total_out = before + output.len() as u64;
            self.checksum.combine(&piece.checksum);
            self.member_out += output.len() as u64;
            let window = piece.windowed().iter().rev().take(WINDOW_SIZE).rev();
            self.buffer
                .iter_mut()
                .zip(window)
                .for_each(|(to, from)| *to = *from);
            self.at = WINDOW_SIZE;
            sink(output)?;
        }
        self.total_in = piece.end.div_ceil(8);
        if piece.ended {
            self.start_of_trailer();
        } else {
            self.part = piece.end / 8;
            self.phase = Phase::Blocks(BlockPosition::Adopted {
                bits: unused_bits(piece.end),
                byte: piece.end_byte,
            });
        }
        Ok(true)
    }

    /// What each value of a piece's marked part stands for.
    fn markers(&self) -> Box<[u8; 1 << 16]> {
        let mut table = Box::new([0; 1 << 16]);
        let window = self.buffer.get(self.at - WINDOW_SIZE..self.at);
        let bytes = (0..=u8::MAX).collect::<Vec<_>>();
        if let Some(low) = table.get_mut(..bytes.len()) {
            low.copy_from_slice(&bytes);
        }
        if let (Some(high), Some(window)) = (table.get_mut(usize::from(MARKER)..), window) {
            high.copy_from_slice(window);
        }
        table
    }

    fn invalid(&self, reason: &'static str) -> BuildError {
        // zlib's word for a header that is not gzip's; padding is no gzip for Go's reader either.
        let reason = if self.members > 0 && reason == "incorrect header check" {
            "its last member is followed by bytes that are not gzip"
        } else {
            reason
        };
        BuildError::Gzip {
            reason,
            at: self.part,
        }
    }

    /// Ends the layer.
    pub(crate) fn finish(self) -> Result<GzipCheckpoints, BuildError> {
        if self.members > 0 && matches!(self.phase, Phase::Between) {
            return Ok(self.checkpoints);
        }
        let reason = if self.total_in == 0 {
            "it is empty"
        } else {
            "in the middle of a gzip member"
        };
        Err(BuildError::Truncated {
            reason,
            at: self.total_in,
        })
    }
}
