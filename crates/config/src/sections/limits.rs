//! Limits of what images may take of the node.

use std::time::Duration;

use crate::schema::{Section, Unit, Visitor};
use crate::sections::MAX;

/// `[limits]`
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Memory that unpacking one layer may take beside buffers.
    pub unpack_memory_bytes: u64,
    /// Size of the largest uncompressed layer that is unpacked.
    pub unpack_output_bytes: u64,
    /// Time until the first byte of a layer that is unpacked.
    pub unpack_first_byte: Duration,
    /// Fewest bytes per second after that, over 15 seconds.
    pub unpack_floor_bytes_per_sec: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            unpack_memory_bytes: 192 << 20,
            unpack_output_bytes: 64 << 30,
            unpack_first_byte: Duration::from_secs(20),
            unpack_floor_bytes_per_sec: 64 << 10,
        }
    }
}

impl Section for Limits {
    fn visit(&mut self, v: &mut impl Visitor) {
        v.number(
            "unpack_memory_bytes",
            &mut self.unpack_memory_bytes,
            0..=MAX,
        );
        v.number(
            "unpack_output_bytes",
            &mut self.unpack_output_bytes,
            0..=MAX,
        );
        v.duration(
            "unpack_first_byte_sec",
            Unit::Seconds,
            &mut self.unpack_first_byte,
        );
        v.number(
            "unpack_floor_bytes_per_sec",
            &mut self.unpack_floor_bytes_per_sec,
            0..=MAX,
        );
    }
}
