//! Start-up profiles: what starts of images read, recorded and fetched ahead of the next start.

use super::MAX;
use crate::schema::{Section, Visitor};

/// `[profile]`
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// Record starts, and play what was recorded.
    pub enable: bool,
    /// Most bytes of all profiles on disk; the oldest are removed.
    pub max_size_bytes: u64,
    /// Play the prefetch artifacts that an index lists, as `[prefetch] enable` does.
    pub index: bool,
    /// Ask the registry for a profile that refers to the image.
    pub referrers: bool,
    /// Publish what was recorded beside the image at its registry, unless a profile is there.
    pub publish: bool,
    /// Rate of the link in bytes per second below which playing begins at the first read; 0: never.
    pub min_link_bytes_per_sec: u64,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            enable: true,
            max_size_bytes: 8 << 20,
            index: true,
            referrers: true,
            publish: false,
            min_link_bytes_per_sec: 50_000_000,
        }
    }
}

impl Section for Profile {
    fn visit(&mut self, v: &mut impl Visitor) {
        v.flag("enable", &mut self.enable);
        v.number("max_size_bytes", &mut self.max_size_bytes, 0..=MAX);
        v.flag("index", &mut self.index);
        v.flag("referrers", &mut self.referrers);
        v.flag("publish", &mut self.publish);
        v.number(
            "min_link_bytes_per_sec",
            &mut self.min_link_bytes_per_sec,
            0..=MAX,
        );
    }
}
