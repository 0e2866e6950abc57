//! A deflate decoder (RFC 1951) for the middle of a stream, with unknown bytes before it.
//!
//! Output is 16 bits per byte: a value below 256 is that byte; [`MARKER`] plus `i` stands for the
//! `i`-th byte of the window, the 32 KiB before the start, which are unknown at first. Once they are
//! known, the markers are looked up in them. The technique is that of pugz (Kerbiriou and Chikhi,
//! "Parallel decompression of gzip-compressed files and random access to DNA sequences", 2019) and
//! rapidgzip (Knespel and Brunst, "Rapidgzip: Parallel Decompression and Seeking in Gzip Files Using
//! Cache Prefetching", 2023).

#![expect(
    clippy::cast_possible_truncation,
    reason = "what is cast are a few bits of a word, symbols below 320, and codes of up to 15 bits"
)]

mod bits;
mod block;
mod find;
mod huffman;

pub(crate) use bits::BitReader;
pub(crate) use block::{Block, BlockDecoder, BlockError, BlockKind};
pub(crate) use find::find_block;

/// Values from here on stand for bytes of the window.
pub(crate) const MARKER: u16 = 0x8000;

/// How many values more than a block has must fit behind the output for it to be decoded to its end:
/// the longest match, and what copying in pieces may write too much.
pub(crate) const SLACK: usize = 258 + 8;
