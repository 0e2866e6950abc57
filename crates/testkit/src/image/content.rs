//! Deterministic file contents of any size, readable at any place without being kept.

use std::io::{self, Read};

/// The contents of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// These bytes.
    Bytes(Vec<u8>),
    /// Bytes that do not compress.
    Noise {
        /// Which noise.
        seed: u64,
        /// How many bytes.
        length: u64,
    },
    /// Words that compress to less than a quarter.
    Text {
        /// Which words.
        seed: u64,
        /// How many bytes.
        length: u64,
    },
    /// Noise and words in turns of 4 KiB: compresses like program code.
    Mixed {
        /// Which of them.
        seed: u64,
        /// How many bytes.
        length: u64,
    },
}

const WORDS: [&[u8; 8]; 16] = [
    b"registry",
    b"snapshot",
    b"layer is",
    b"mounted ",
    b"checksum",
    b"offsets ",
    b"digests,",
    b"the span",
    b"manifest",
    b" of the ",
    b"and then",
    b"fetched ",
    b"windows ",
    b"inflate ",
    b"descrip.",
    b"archive\n",
];

impl Content {
    /// How many bytes there are.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Noise { length, .. } | Self::Text { length, .. } | Self::Mixed { length, .. } => {
                *length
            }
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes from `offset` on, at most `length`, fewer at the end.
    #[must_use]
    pub fn range(&self, offset: u64, length: usize) -> Vec<u8> {
        let length = usize::try_from(self.len().saturating_sub(offset))
            .unwrap_or(length)
            .min(length);
        let mut out = vec![0; length];
        let mut filled = 0;
        while filled < length {
            let at = offset + filled as u64;
            let block = self.block(at / 8);
            let skip = usize::try_from(at % 8).unwrap_or(0);
            let count = (8 - skip).min(length - filled);
            out[filled..filled + count].copy_from_slice(&block[skip..skip + count]);
            filled += count;
        }
        out
    }

    /// All bytes.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        self.range(0, usize::try_from(self.len()).unwrap_or(usize::MAX))
    }

    /// The bytes as a stream.
    #[must_use]
    pub fn reader(&self) -> ContentReader<'_> {
        ContentReader {
            content: self,
            at: 0,
        }
    }

    /// The eight bytes at eight times `index`.
    fn block(&self, index: u64) -> [u8; 8] {
        match self {
            Self::Bytes(bytes) => {
                let start = usize::try_from(index * 8).unwrap_or(usize::MAX);
                let rest = bytes.get(start..).unwrap_or_default();
                let mut block = [0; 8];
                let count = rest.len().min(8);
                block[..count].copy_from_slice(&rest[..count]);
                block
            }
            Self::Noise { seed, .. } => mixed(*seed, index).to_le_bytes(),
            Self::Mixed { seed, .. } if (index / 512).is_multiple_of(2) => {
                mixed(*seed, index).to_le_bytes()
            }
            Self::Text { seed, .. } | Self::Mixed { seed, .. } => {
                let word = usize::try_from(mixed(*seed, index) % 16).unwrap_or(0);
                *WORDS[word]
            }
        }
    }
}

/// SplitMix64's output function (Steele, Lea, Flood 2014) of a position.
fn mixed(seed: u64, index: u64) -> u64 {
    let mut z = seed
        .wrapping_mul(0xd134_2543_de82_ef95)
        .wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Streams a [`Content`].
#[derive(Debug)]
pub struct ContentReader<'a> {
    content: &'a Content,
    at: u64,
}

impl Read for ContentReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.content.range(self.at, buffer.len().min(64 * 1024));
        buffer[..bytes.len()].copy_from_slice(&bytes);
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_range_equals_that_part_of_the_whole() {
        for content in [
            Content::Bytes((0..99).collect()),
            Content::Noise {
                seed: 1,
                length: 99,
            },
            Content::Text {
                seed: 2,
                length: 99,
            },
            Content::Mixed {
                seed: 3,
                length: 99,
            },
        ] {
            let whole = content.to_vec();
            assert_eq!(whole.len(), 99);
            let mut streamed = Vec::new();
            content.reader().read_to_end(&mut streamed).unwrap();
            assert_eq!(streamed, whole);
            for (offset, length) in [(0, 1), (3, 10), (8, 8), (90, 50), (99, 4), (200, 4)] {
                let end = (offset + length).min(99);
                let part = whole.get(offset..end).unwrap_or_default();
                assert_eq!(content.range(offset as u64, length), part);
            }
        }
    }
}
