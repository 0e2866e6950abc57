//! Limits of what images may take of the node.

use std::time::Duration;

use crate::schema::{Broken, Section, Unit, Visitor};
use crate::sections::MAX;

/// Fewest bytes in memory with which layers are downloaded while others are unpacked; 0 is no limit of its own.
const MIN_EAGER_MEMORY: u64 = 8 << 20;

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
    /// Memory for what is on its way in eager pulls, of all images together. 0: by the number of cores, 96 MiB on
    /// two.
    pub eager_memory_bytes: u64,
    /// Size of the largest zTOC that is used.
    pub ztoc_bytes: u64,
    /// Memory in which the file tree of one layer is built.
    pub tree_bytes: u64,
    /// Memory of the file trees of one image's layers.
    pub image_tree_bytes: u64,
    /// Memory of the file trees of all layers in use.
    pub total_tree_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            unpack_memory_bytes: 192 << 20,
            unpack_output_bytes: 64 << 30,
            unpack_first_byte: Duration::from_secs(20),
            unpack_floor_bytes_per_sec: 64 << 10,
            eager_memory_bytes: 0,
            ztoc_bytes: 128 << 20,
            tree_bytes: 256 << 20,
            image_tree_bytes: 512 << 20,
            total_tree_bytes: 1 << 30,
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
        v.number("eager_memory_bytes", &mut self.eager_memory_bytes, 0..=MAX);
        v.number("ztoc_bytes", &mut self.ztoc_bytes, 0..=MAX);
        v.number("tree_bytes", &mut self.tree_bytes, 0..=MAX);
        v.number("image_tree_bytes", &mut self.image_tree_bytes, 0..=MAX);
        v.number("total_tree_bytes", &mut self.total_tree_bytes, 0..=MAX);
    }

    fn check(&self) -> Vec<Broken> {
        let bytes = self.eager_memory_bytes;
        if bytes == 0 || bytes >= MIN_EAGER_MEMORY {
            return Vec::new();
        }
        let allowed = format!("0, or at least {MIN_EAGER_MEMORY}");
        vec![Broken::new(
            "eager_memory_bytes",
            bytes.to_string(),
            allowed,
        )]
    }
}
