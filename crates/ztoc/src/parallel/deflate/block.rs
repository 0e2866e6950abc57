//! Decoding blocks whose window is unknown.

use super::SLACK;
use super::bits::BitReader;
use super::huffman::{END, Entry, Fill, INVALID, LITERAL, SUBTABLE, Table, fill, length, value};

/// A block's first three bits (RFC 1951, section 3.2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Block {
    /// No other follows.
    pub(crate) last: bool,
    pub(crate) kind: BlockKind,
}

/// How a block is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BlockKind {
    Stored,
    Fixed,
    Dynamic,
    Invalid,
}

impl Block {
    /// What the low three bits of `bits` say.
    pub(crate) const fn from_bits(bits: usize) -> Self {
        let kind = match bits >> 1 & 3 {
            0 => BlockKind::Stored,
            1 => BlockKind::Fixed,
            2 => BlockKind::Dynamic,
            _ => BlockKind::Invalid,
        };
        Self {
            last: bits & 1 == 1,
            kind,
        }
    }
}

/// Why a block was not decoded to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BlockError {
    /// The block is not valid deflate.
    Invalid,
    /// The input ends inside.
    InputOver,
    /// The output has no room for all of it.
    OutputFull,
}

impl BlockError {
    /// Why what was read last makes no sense: it is wrong, or it is not there.
    const fn at(bits: &BitReader<'_>) -> Self {
        if bits.is_over() {
            Self::InputOver
        } else {
            Self::Invalid
        }
    }
}

/// Bits of one table lookup, for literals and lengths, and for distances.
const LITERAL_BITS: u32 = 11;
const DISTANCE_BITS: u32 = 9;
const CODE_LENGTH_BITS: u32 = 7;

/// The least length of symbols 257 and on, and how many bits more it has (section 3.2.5).
const LENGTHS: [(u16, u8); 29] = [
    (3, 0),
    (4, 0),
    (5, 0),
    (6, 0),
    (7, 0),
    (8, 0),
    (9, 0),
    (10, 0),
    (11, 1),
    (13, 1),
    (15, 1),
    (17, 1),
    (19, 2),
    (23, 2),
    (27, 2),
    (31, 2),
    (35, 3),
    (43, 3),
    (51, 3),
    (59, 3),
    (67, 4),
    (83, 4),
    (99, 4),
    (115, 4),
    (131, 5),
    (163, 5),
    (195, 5),
    (227, 5),
    (258, 0),
];
/// The order in which the lengths of the code-length codes come (section 3.2.7).
const ORDER: [usize; 19] = [
    16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15,
];
const END_OF_BLOCK: usize = 256;

/// Literals and lengths: a length's value is its least, then the count of further bits in the top 4.
fn literal_entry(symbol: usize) -> Entry {
    match symbol {
        0..END_OF_BLOCK => LITERAL | (symbol as Entry) << 8,
        END_OF_BLOCK => END,
        _ => LENGTHS
            .get(symbol - END_OF_BLOCK - 1)
            .map_or(INVALID, |(least, more)| {
                Entry::from(*least) << 8 | Entry::from(*more) << 24
            }),
    }
}

/// Distances: the value is the least distance, then the count of further bits in the top 4. They go
/// in pairs of the same count (section 3.2.5).
const fn distance_entry(symbol: usize) -> Entry {
    let symbol = symbol as Entry;
    let (least, more) = match symbol {
        0..4 => (symbol + 1, 0),
        4..30 => {
            let more = symbol / 2 - 1;
            (((2 + symbol % 2) << more) + 1, more)
        }
        _ => return INVALID,
    };
    least << 8 | more << 24
}

/// The top 4 bits of a value, and the rest of it.
#[inline(always)]
const fn extra(entry: Entry) -> (u32, usize) {
    (entry >> 24 & 0xf, (entry >> 8 & 0xffff) as usize)
}

/// The code lengths of a dynamic block.
#[derive(Debug)]
pub(crate) struct CodeLengths {
    lengths: [u8; 286 + 30],
    literals: usize,
    distances: usize,
    /// How the literals' fill their space.
    fill: Fill,
}

/// Decodes blocks.
#[derive(Debug)]
pub(crate) struct BlockDecoder {
    code_lengths: Table<CODE_LENGTH_BITS>,
    literals: Table<LITERAL_BITS>,
    distances: Table<DISTANCE_BITS>,
    /// The tables are those of fixed blocks.
    fixed: bool,
}

impl BlockDecoder {
    pub(crate) const fn new() -> Self {
        Self {
            code_lengths: Table::new(),
            literals: Table::new(),
            distances: Table::new(),
            fixed: false,
        }
    }

    /// Decodes the block at `bits`, whose first three bits were taken, to `out` behind the first
    /// `at` values, and moves `at` on.
    ///
    /// # Errors
    /// [`BlockError`]; what was decoded stays, and `at` is where it ends.
    pub(crate) fn decode(
        &mut self,
        kind: BlockKind,
        bits: &mut BitReader<'_>,
        out: &mut [u16],
        at: &mut usize,
    ) -> Result<(), BlockError> {
        match kind {
            BlockKind::Invalid => Err(BlockError::Invalid),
            BlockKind::Stored => stored(bits, out, at),
            BlockKind::Fixed => {
                if !self.fixed {
                    let mut lengths = [8; 288];
                    lengths.iter_mut().skip(144).for_each(|length| *length = 9);
                    lengths.iter_mut().skip(256).for_each(|length| *length = 7);
                    lengths.iter_mut().skip(280).for_each(|length| *length = 8);
                    self.literals.build(&lengths, literal_entry);
                    self.distances.build(&[5; 32], distance_entry);
                    self.fixed = true;
                }
                self.symbols(bits, out, at)
            }
            BlockKind::Dynamic => {
                let lengths = self.read_lengths(bits);
                let lengths = lengths.ok_or_else(|| BlockError::at(bits))?;
                self.build(&lengths);
                self.symbols(bits, out, at)
            }
        }
    }

    /// Reads the head of a dynamic block behind its first three bits (section 3.2.7). `None` if it
    /// is not valid.
    pub(crate) fn read_lengths(&mut self, bits: &mut BitReader<'_>) -> Option<CodeLengths> {
        bits.refill();
        let literals = bits.take(5) + 257;
        let distances = bits.take(5) + 1;
        let count = bits.take(4) + 4;
        if literals > 286 || distances > 30 {
            return None;
        }
        let mut lengths = [0; 19];
        for symbol in ORDER.iter().take(count) {
            bits.refill();
            *lengths.get_mut(*symbol)? = bits.take(3) as u8;
        }
        if fill(&lengths)? != Fill::Complete {
            return None;
        }
        self.code_lengths
            .build(&lengths, |symbol| (symbol as Entry) << 8);

        let mut lengths = [0; 286 + 30];
        let all = lengths.get_mut(..literals + distances)?;
        let mut at = 0;
        while at < all.len() {
            bits.refill();
            let (first, _) = self.code_lengths.parts::<{ 1 << CODE_LENGTH_BITS }>()?;
            let entry = *first.get(bits.peek(CODE_LENGTH_BITS))?;
            bits.skip(length(entry));
            let (repeated, count) = match value(entry) {
                16 => (*all.get(at.checked_sub(1)?)?, 3 + bits.take(2)),
                17 => (0, 3 + bits.take(3)),
                18 => (0, 11 + bits.take(7)),
                length => (length as u8, 1),
            };
            all.get_mut(at..at + count)?.fill(repeated);
            at += count;
        }
        if bits.is_over() || all.get(END_OF_BLOCK).is_none_or(|length| *length == 0) {
            return None;
        }
        let (of_literals, of_distances) = all.split_at_checked(literals)?;
        let fill_of_literals = fill(of_literals)?;
        fill(of_distances)?;
        Some(CodeLengths {
            lengths,
            literals,
            distances,
            fill: fill_of_literals,
        })
    }

    fn build(&mut self, lengths: &CodeLengths) {
        self.fixed = false;
        let (literals, rest) = lengths.lengths.split_at(lengths.literals);
        self.literals.build(literals, literal_entry);
        let distances = rest.get(..lengths.distances).unwrap_or_default();
        self.distances.build(distances, distance_entry);
    }

    /// Decodes literals and matches up to the end of the block.
    fn symbols(
        &self,
        reader: &mut BitReader<'_>,
        out: &mut [u16],
        position: &mut usize,
    ) -> Result<(), BlockError> {
        let literals = self.literals.parts::<{ 1 << LITERAL_BITS }>();
        let distances = self.distances.parts::<{ 1 << DISTANCE_BITS }>();
        let (Some((literals, more_literals)), Some((distances, more_distances))) =
            (literals, distances)
        else {
            return Err(BlockError::Invalid);
        };
        // Kept in registers.
        let mut bits = *reader;
        let mut at = *position;
        let result = loop {
            // Literals might come for ever out of the zeros behind the input's end.
            if bits.is_far_over() {
                break Err(BlockError::InputOver);
            }
            // Room for two literals and a match.
            if out.len().saturating_sub(at) < SLACK + 3 {
                break Err(BlockError::OutputFull);
            }
            bits.refill();
            let mut entry = literals[bits.peek(LITERAL_BITS)];
            if entry & LITERAL != 0 {
                // Three literals are at most 33 bits.
                bits.skip(length(entry));
                out[at] = value(entry) as u16;
                entry = literals[bits.peek(LITERAL_BITS)];
                at += 1;
                if entry & LITERAL != 0 {
                    bits.skip(length(entry));
                    out[at] = value(entry) as u16;
                    entry = literals[bits.peek(LITERAL_BITS)];
                    at += 1;
                    if entry & LITERAL != 0 {
                        bits.skip(length(entry));
                        out[at] = value(entry) as u16;
                        at += 1;
                        continue;
                    }
                }
                // A match is at most 48 bits.
                bits.refill();
            }
            if entry & SUBTABLE != 0 {
                let more = bits.peek_after(LITERAL_BITS, length(entry));
                entry = more_literals
                    .get(value(entry) + more)
                    .copied()
                    .unwrap_or(INVALID);
                if entry & LITERAL != 0 {
                    bits.skip(length(entry));
                    out[at] = value(entry) as u16;
                    at += 1;
                    continue;
                }
            }
            bits.skip(length(entry));
            if entry & (END | INVALID) != 0 {
                break if entry & END != 0 && !bits.is_over() {
                    Ok(())
                } else {
                    Err(BlockError::at(&bits))
                };
            }
            let (more, least) = extra(entry);
            let len = least + bits.take(more);
            let mut entry = distances[bits.peek(DISTANCE_BITS)];
            if entry & SUBTABLE != 0 {
                let more = bits.peek_after(DISTANCE_BITS, length(entry));
                entry = more_distances
                    .get(value(entry) + more)
                    .copied()
                    .unwrap_or(INVALID);
            }
            bits.skip(length(entry));
            if entry & INVALID != 0 {
                break Err(BlockError::at(&bits));
            }
            let (more, least) = extra(entry);
            let distance = least + bits.take(more);
            if distance > at {
                break Err(BlockError::Invalid);
            }
            copy_match(out, at, distance, len);
            at += len;
        };
        *reader = bits;
        *position = at;
        result
    }
}

/// Copies a match; may write up to 7 values too many. `distance` is at most `at`.
#[inline(always)]
fn copy_match(out: &mut [u16], at: usize, distance: usize, len: usize) {
    const PIECE: usize = 8;
    let from = at - distance;
    if distance >= PIECE {
        let mut done = 0;
        while done < len {
            let piece: [u16; PIECE] = match out[from + done..].first_chunk() {
                Some(piece) => *piece,
                None => return,
            };
            if let Some(to) = out[at + done..].first_chunk_mut() {
                *to = piece;
            }
            done += PIECE;
        }
    } else {
        for i in 0..len {
            out[at + i] = out[from + i];
        }
    }
}

/// A block that is not compressed (section 3.2.4).
fn stored(bits: &mut BitReader<'_>, out: &mut [u16], at: &mut usize) -> Result<(), BlockError> {
    let head = bits.take_bytes(4).ok_or(BlockError::InputOver)?;
    let &[a, b, c, d] = head else {
        return Err(BlockError::InputOver);
    };
    let len = u16::from_le_bytes([a, b]);
    if len != !u16::from_le_bytes([c, d]) {
        return Err(BlockError::Invalid);
    }
    let len = usize::from(len);
    let content = bits.take_bytes(len).ok_or(BlockError::InputOver)?;
    let room = out.get_mut(*at..*at + len).ok_or(BlockError::OutputFull)?;
    room.iter_mut()
        .zip(content)
        .for_each(|(to, from)| *to = u16::from(*from));
    *at += len;
    Ok(())
}

impl CodeLengths {
    /// A real block's head is more likely than chance: literals have several codes.
    pub(crate) fn is_plausible(&self) -> bool {
        self.fill == Fill::Complete
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;
    use crate::inflate::{Inflater, State, Stop, Wrapping};
    use crate::parallel::deflate::MARKER;

    /// The most that is inflated here.
    const MAX: usize = 400_000;
    const WINDOW: usize = crate::WINDOW_SIZE;

    /// What all blocks hold; `None` if they are not valid, not whole, or refer to what is before.
    fn ours(deflate: &[u8]) -> Option<Vec<u8>> {
        let mut decoder = BlockDecoder::new();
        let mut out = vec![0; WINDOW + MAX + SLACK + 3];
        let window = out.iter_mut().zip(MARKER..=u16::MAX);
        window.for_each(|(value, marker)| *value = marker);
        let (mut bits, mut at) = (BitReader::new(deflate, 0), WINDOW);
        loop {
            bits.refill();
            let block = Block::from_bits(bits.take(3));
            decoder
                .decode(block.kind, &mut bits, &mut out, &mut at)
                .ok()?;
            if block.last {
                let bytes = out[WINDOW..at].iter();
                return bytes.map(|value| u8::try_from(*value).ok()).collect();
            }
        }
    }

    /// The same of zlib-rs.
    fn theirs(deflate: &[u8]) -> Option<Vec<u8>> {
        let mut inflater = Inflater::new(Wrapping::Raw).unwrap();
        let mut out = vec![0; MAX];
        let step = inflater.step(deflate, &mut out, Stop::Never).ok()?;
        out.truncate(step.produced);
        (step.state == State::End).then_some(out)
    }

    fn deflate(level: u32, parts: &[&[u8]]) -> Vec<u8> {
        let level = flate2::Compression::new(level);
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), level);
        for part in parts {
            encoder.write_all(part).unwrap();
            encoder.flush().unwrap();
        }
        encoder.finish().unwrap()
    }

    /// Streams with blocks of every kind, second tables, and codes of every length.
    static STREAMS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
        let mut state = 1_u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            state.to_be_bytes()[0]
        })
        .take(100_000)
        .collect();
        // Each byte half as frequent as the one before.
        let skewed: Vec<u8> = noise
            .chunks_exact(4)
            .map(|word| {
                let word = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
                word.trailing_zeros() as u8
            })
            .collect();
        let text = "a line of text, and another of the same; ".repeat(2000);
        // Matches of all distances.
        let far: Vec<u8> = (0..60)
            .flat_map(|at| {
                [
                    &noise[at * 800..at * 800 + 600],
                    &noise[at * 90..at * 97 + 20],
                ]
                .concat()
            })
            .collect();
        let mut streams = Vec::new();
        for level in [0, 1, 6, 9] {
            for data in [&noise, &skewed, text.as_bytes(), &far, b"short", b""] {
                streams.push(deflate(level, &[data]));
            }
            streams.push(deflate(
                level,
                &[&skewed[..500], b"x", &far, &noise[..70_000]],
            ));
        }
        streams
    });

    #[test]
    fn blocks_of_every_kind_are_decoded_as_zlib_does() {
        for stream in STREAMS.iter() {
            let expected = theirs(stream);
            assert!(expected.is_some());
            assert!(ours(stream) == expected);
        }
    }

    #[test]
    fn a_stream_that_ends_early_is_distinguished_from_a_damaged_one() {
        for stream in STREAMS.iter().filter(|stream| stream.len() > 100) {
            let mut decoder = BlockDecoder::new();
            for len in [stream.len() / 3, stream.len() - 20] {
                let mut out = vec![0; 4 * MAX];
                let (mut bits, mut at) = (BitReader::new(&stream[..len], 0), WINDOW);
                let error = loop {
                    bits.refill();
                    let block = Block::from_bits(bits.take(3));
                    if let Err(error) = decoder.decode(block.kind, &mut bits, &mut out, &mut at) {
                        break error;
                    }
                };
                assert_eq!(error, BlockError::InputOver);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 1000,
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn damaged_blocks_are_decoded_or_refused_as_zlib_does(
            stream in any::<prop::sample::Index>(),
            at in any::<prop::sample::Index>(),
            // The heads of blocks are where most can go wrong.
            early in any::<bool>(),
            value in any::<u8>(),
        ) {
            let mut stream = stream.get(&STREAMS).clone();
            let len = if early { stream.len().min(100) } else { stream.len() };
            stream[at.index(len)] = value;
            let (ours, theirs) = (ours(&stream), theirs(&stream));
            // What has no room at the end is left to others.
            if theirs.as_ref().is_none_or(|out| out.len() < MAX) {
                prop_assert!(ours == theirs, "{:?} and {:?}", ours.map(|o| o.len()), theirs.map(|o| o.len()));
            }
        }
    }
}
