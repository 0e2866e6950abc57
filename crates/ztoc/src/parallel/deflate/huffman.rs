//! Tables that decode Huffman codes (RFC 1951, section 3.2.2).

/// The longest code, in bits.
pub(crate) const MAX_LEN: usize = 15;

/// Entries are 32 bits. The lowest byte is the length of the whole code in bits, or, with
/// [`SUBTABLE`], how many bits more choose in a second table, which starts at `value(entry)`.
pub(crate) type Entry = u32;

/// The next bits are a literal, which is the value's low byte.
pub(crate) const LITERAL: Entry = 1 << 31;
/// A second table decides.
pub(crate) const SUBTABLE: Entry = 1 << 30;
/// The block ends.
pub(crate) const END: Entry = 1 << 29;
/// No code starts with these bits, or it stands for nothing.
pub(crate) const INVALID: Entry = 1 << 28;

/// An entry's length in bits.
#[inline(always)]
pub(crate) const fn length(entry: Entry) -> u32 {
    entry & 0xff
}

/// An entry's 20 bits of value.
#[inline(always)]
pub(crate) const fn value(entry: Entry) -> usize {
    (entry >> 8 & 0xf_ffff) as usize
}

/// A table for codes whose first `BITS` bits decide in most cases.
#[derive(Debug)]
pub(crate) struct Table<const BITS: u32> {
    /// First the `2^BITS` entries for the first bits, then the second tables.
    entries: Vec<Entry>,
}

/// How lengths fill the space of codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fill {
    /// Each sequence of bits starts with exactly one code.
    Complete,
    /// There is one code, of one bit, or none.
    Single,
}

/// How `lengths` fill the space of codes; `None` if in a way that is forbidden.
pub(crate) fn fill(lengths: &[u8]) -> Option<Fill> {
    let mut counts = [0_u32; MAX_LEN + 1];
    for length in lengths {
        *counts.get_mut(usize::from(*length))? += 1;
    }
    let used: u32 = counts.iter().skip(1).sum();
    let one_bit = counts.get(1).copied().unwrap_or(0);
    if used == 0 || (used == 1 && one_bit == 1) {
        return Some(Fill::Single);
    }
    let sum: u64 = counts
        .iter()
        .enumerate()
        .skip(1)
        .map(|(length, count)| u64::from(*count) << (MAX_LEN - length))
        .sum();
    (sum == 1 << MAX_LEN).then_some(Fill::Complete)
}

impl<const BITS: u32> Table<BITS> {
    const SIZE: usize = 1 << BITS;

    pub(crate) const fn new() -> Self {
        Self {
            entries: Vec::new(),
        }
    }

    /// Fills the table for codes of these `lengths`, 0 for symbols without one, which must be as
    /// [`fill`] allows. `entry` gives a symbol's flags and value.
    pub(crate) fn build(&mut self, lengths: &[u8], entry: impl Fn(usize) -> Entry) {
        self.entries.clear();
        self.entries.resize(Self::SIZE, INVALID | 1);
        // The first code of each length.
        let mut next = [0_u32; MAX_LEN + 2];
        for length in lengths.iter().filter(|length| **length > 0) {
            if let Some(count) = next.get_mut(usize::from(*length) + 1) {
                *count += 1;
            }
        }
        let mut code = 0;
        for first in &mut next {
            code = (code + *first) << 1;
            *first = code;
        }
        // Symbols in the order of their codes need their second tables' sizes first.
        let mut longest = [0_u8; 1 << 11];
        let codes = |next: &mut [u32; MAX_LEN + 2], length: u8| {
            let next = next.get_mut(usize::from(length))?;
            let code = *next;
            *next += 1;
            // Codes are packed starting with their most significant bit.
            Some((code.reverse_bits() >> (32 - u32::from(length))) as usize)
        };
        if lengths.iter().any(|length| u32::from(*length) > BITS) {
            let mut next = next;
            for length in lengths.iter().filter(|length| **length > 0) {
                let code = codes(&mut next, *length).unwrap_or(0);
                if let Some(more) = u32::from(*length).checked_sub(BITS)
                    && let Some(longest) = longest.get_mut(code & (Self::SIZE - 1))
                {
                    *longest = (*longest).max(more as u8);
                }
            }
            for (first, more) in longest.iter().enumerate().take(Self::SIZE) {
                if *more > 0 {
                    let start = self.entries.len();
                    if let Some(entry) = self.entries.get_mut(first) {
                        *entry = SUBTABLE | (start as Entry) << 8 | Entry::from(*more);
                    }
                    self.entries.resize(start + (1 << *more), INVALID | 1);
                }
            }
        }
        for (symbol, length) in lengths.iter().enumerate().filter(|(_, len)| **len > 0) {
            let code = codes(&mut next, *length).unwrap_or(0);
            let new = entry(symbol) | Entry::from(*length);
            let bits = u32::from(*length);
            let (start, step, end) = if bits <= BITS {
                (code, 1 << bits, Self::SIZE)
            } else {
                let table = self.entries.get(code & (Self::SIZE - 1)).copied();
                let table = table.unwrap_or(0);
                let start = value(table);
                let end = start + (1 << self::length(table));
                (start + (code >> BITS), 1 << (bits - BITS), end)
            };
            let entries = self.entries.get_mut(start..end).unwrap_or_default();
            entries.iter_mut().step_by(step).for_each(|to| *to = new);
        }
    }

    /// The entries for the first `BITS` bits, of which there are `N`, and all entries.
    #[inline]
    pub(crate) fn parts<const N: usize>(&self) -> Option<(&[Entry; N], &[Entry])> {
        Some((self.entries.first_chunk()?, &self.entries))
    }
}
