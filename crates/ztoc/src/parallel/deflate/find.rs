//! Finding the start of a block in the middle of a stream.

use super::bits::BitReader;
use super::block::BlockDecoder;

/// The bits that a dynamic block's head has before the count of code lengths of its code lengths:
/// BFINAL, BTYPE, HLIT, HDIST (RFC 1951, section 3.2.7).
const HEAD: usize = 3 + 5 + 5;

/// The space of codes of up to 7 bits, in codes of 7 bits.
const ALL: u16 = 128;
/// How much of it four codes take whose lengths are the 12 bits.
static SPACE: [u16; 1 << 12] = {
    let mut space = [0; 1 << 12];
    let mut lengths = 0;
    while lengths < space.len() {
        let mut rest = lengths;
        while rest > 0 {
            if rest & 7 != 0 {
                space[lengths] += ALL >> (rest & 7);
            }
            rest >>= 3;
        }
        lengths += 1;
    }
    space
};

/// The position, in bits, of the first dynamic block that is not the last one and starts in the first
/// `limit` bytes. Its head is valid; by chance that is so about once in a thousand million bits, so
/// the caller must check that a block ends there.
pub(crate) fn find_block(data: &[u8], limit: usize, decoder: &mut BlockDecoder) -> Option<usize> {
    // What follows must at least hold a head.
    let end = limit.min(data.len().saturating_sub(32));
    for at in (0..end).step_by(STEP) {
        let word = u64::from_le_bytes(*data.get(at..)?.first_chunk()?);
        let mut candidates = candidates(word);
        while candidates != 0 {
            let position = at * 8 + candidates.trailing_zeros() as usize;
            candidates &= candidates - 1;
            if !is_complete(data, position)? {
                continue;
            }
            let mut bits = BitReader::new(data, position + 3);
            if decoder
                .read_lengths(&mut bits)
                .is_some_and(|lengths| lengths.is_plausible())
            {
                return Some(position);
            }
        }
    }
    None
}

/// How many bytes of a word are looked at as starts: the rest is what follows the last of them.
const STEP: usize = 6;

/// Which of the word's first bits a block's head may start at as to its first three fields: BFINAL 0,
/// BTYPE 10, HLIT and HDIST below 30.
const fn candidates(word: u64) -> u64 {
    let kind = !word & !(word >> 1) & (word >> 2);
    let many_literals = (word >> 4) & (word >> 5) & (word >> 6) & (word >> 7);
    let many_distances = (word >> 9) & (word >> 10) & (word >> 11) & (word >> 12);
    kind & !many_literals & !many_distances & ((1 << (8 * STEP)) - 1)
}

/// Whether the code lengths' codes of the head at `position` fill their space.
fn is_complete(data: &[u8], position: usize) -> Option<bool> {
    // HCLEN and up to 19 lengths of 3 bits.
    let start = position + HEAD;
    let bytes = data.get(start / 8..)?.first_chunk()?;
    let bits = (u128::from_le_bytes(*bytes) >> (start % 8)) as u64;
    let count = (bits & 15) + 4;
    let lengths = bits >> 4 & ((1 << (3 * count)) - 1);
    let taken: u16 = (0..5)
        .map(|i| SPACE[(lengths >> (12 * i) & 0xfff) as usize])
        .sum();
    Some(taken == ALL)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn blocks_are_found_where_they_start() {
        let text: Vec<u8> = (0..200_000_u64)
            .flat_map(|number| (number * number % 10_007).to_string().into_bytes())
            .collect();
        let level = flate2::Compression::new(6);
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), level);
        encoder.write_all(&text).unwrap();
        let deflate = encoder.finish().unwrap();
        let mut inflater = crate::inflate::Inflater::new(crate::inflate::Wrapping::Raw).unwrap();
        let (mut at, mut starts) = (0, vec![0]);
        loop {
            let mut out = vec![0; 1 << 20];
            let step = inflater.step(&deflate[at..], &mut out, crate::inflate::Stop::AtBlocks);
            let step = step.unwrap();
            at += step.consumed;
            match step.state {
                crate::inflate::State::Boundary { bits } => starts.push(at * 8 - bits as usize),
                crate::inflate::State::Inside => {}
                crate::inflate::State::End => break,
            }
        }
        assert!(starts.len() > 5);
        // The last one says so, and is not looked for.
        starts.pop();
        let mut decoder = BlockDecoder::new();
        for pair in starts.windows(2) {
            let from = (pair[0] + 1).div_ceil(8);
            let found = find_block(&deflate[from..], usize::MAX, &mut decoder);
            assert_eq!(found.map(|found| from * 8 + found), Some(pair[1]));
        }
        assert_eq!(find_block(&deflate, usize::MAX, &mut decoder), Some(0));
    }

    #[test]
    fn nothing_is_found_in_text_or_behind_the_limit() {
        let mut decoder = BlockDecoder::new();
        let text = b"no block is in here, only words; ".repeat(1000);
        assert_eq!(find_block(&text, usize::MAX, &mut decoder), None);
        for len in 0..40 {
            assert_eq!(find_block(&text[..len], usize::MAX, &mut decoder), None);
        }
    }
}
