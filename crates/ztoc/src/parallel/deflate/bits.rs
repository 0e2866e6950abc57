//! Bits of a deflate stream.

/// Reads the bits of some bytes, the low ones of each byte first (RFC 1951, section 3.1.1). Behind
/// the last byte come zeros without end; [`BitReader::is_over`] returns whether any were read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BitReader<'d> {
    data: &'d [u8],
    /// The next byte that goes into `hold`; counts on behind the end.
    at: usize,
    /// The next bits. Those above the lowest `have` are there or zero, never wrong.
    hold: u64,
    /// At most 63.
    have: u32,
}

/// How many bits there are at least after [`BitReader::refill`].
pub(crate) const REFILLED: u32 = 56;

impl<'d> BitReader<'d> {
    /// A reader from the `position`-th bit on, refilled.
    pub(crate) fn new(data: &'d [u8], position: usize) -> Self {
        let mut bits = Self {
            data,
            at: position / 8,
            hold: 0,
            have: 0,
        };
        bits.refill();
        bits.skip((position % 8) as u32);
        bits.refill();
        bits
    }

    /// Sees to it that there are at least [`REFILLED`] bits.
    #[inline(always)]
    pub(crate) fn refill(&mut self) {
        let rest = self.data.get(self.at..).unwrap_or_default();
        if let Some(word) = rest.first_chunk::<8>() {
            self.hold |= u64::from_le_bytes(*word) << self.have;
            self.at += ((63 - self.have) >> 3) as usize;
            self.have |= REFILLED;
        } else {
            *self = self.refilled_at_end();
        }
    }

    /// Takes it by value, so that readers can be kept in registers.
    #[cold]
    fn refilled_at_end(mut self) -> Self {
        while self.have < REFILLED {
            let byte = self.data.get(self.at).copied().unwrap_or(0);
            self.hold |= u64::from(byte) << self.have;
            self.at += 1;
            self.have += 8;
        }
        self
    }

    /// The next `count` bits; no more than there are, and fewer than 32.
    #[inline(always)]
    pub(crate) const fn peek(&self, count: u32) -> usize {
        (self.hold & ((1 << count) - 1)) as usize
    }

    /// The bits after the next `offset`, as many as there are.
    #[inline(always)]
    pub(crate) const fn peek_after(&self, offset: u32, count: u32) -> usize {
        (self.hold >> offset & ((1 << count) - 1)) as usize
    }

    /// Leaves out the next `count` bits, no more than there are.
    #[inline(always)]
    pub(crate) const fn skip(&mut self, count: u32) {
        self.hold >>= count;
        self.have -= count;
    }

    /// Takes the next `count` bits; no more than there are, and fewer than 32.
    #[inline(always)]
    pub(crate) const fn take(&mut self, count: u32) -> usize {
        let bits = self.peek(count);
        self.skip(count);
        bits
    }

    /// How many bits of the data were read.
    #[inline]
    pub(crate) const fn position(&self) -> usize {
        self.at * 8 - self.have as usize
    }

    /// More was read than there is.
    #[inline]
    pub(crate) const fn is_over(&self) -> bool {
        self.position() > self.data.len() * 8
    }

    /// So much more than there is was read that going on makes no sense; cheaper to know.
    #[inline(always)]
    pub(crate) const fn is_far_over(&self) -> bool {
        self.at > self.data.len() + 8
    }

    /// Takes `len` whole bytes from the next byte boundary on: a stored block's content.
    pub(crate) fn take_bytes(&mut self, len: usize) -> Option<&'d [u8]> {
        let start = self.position().div_ceil(8);
        let bytes = self.data.get(start..start.checked_add(len)?)?;
        *self = Self::new(self.data, (start + len) * 8);
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_come_low_ones_first_from_any_position_and_zeros_behind_the_end() {
        let data: Vec<u8> = (0..40_u8).map(|byte| byte.wrapping_mul(151)).collect();
        let bit = |at: usize| {
            data.get(at / 8)
                .map_or(0, |byte| usize::from(byte >> (at % 8) & 1))
        };
        for start in 0..data.len() * 8 {
            let mut bits = BitReader::new(&data, start);
            let mut at = start;
            for count in [3, 13, 1, 0, 15, 9].into_iter().cycle() {
                bits.refill();
                let expected = (0..count as usize).map(|i| bit(at + i) << i).sum::<usize>();
                assert_eq!(bits.take(count), expected, "{count} bits at {at}");
                at += count as usize;
                assert_eq!(bits.position(), at);
                assert_eq!(bits.is_over(), at > data.len() * 8);
                if at > data.len() * 8 + 200 {
                    break;
                }
            }
            assert!(bits.is_far_over());
        }
    }

    #[test]
    fn whole_bytes_start_at_a_byte() {
        let data = [1, 2, 3, 4, 5];
        let mut bits = BitReader::new(&data, 3);
        assert_eq!(bits.take_bytes(2), Some(&[2, 3][..]));
        assert_eq!(bits.take(8), 4);
        assert_eq!(bits.take_bytes(1), Some(&[5][..]));
        assert_eq!(bits.take_bytes(1), None);
    }
}
