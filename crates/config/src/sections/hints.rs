//! What is fetched and read ahead for starts that no profile knows.

use super::MAX;
use crate::schema::{Section, Visitor};

/// `[start_hints]`
#[derive(Debug, Clone, PartialEq)]
pub struct StartHints {
    /// Fetch what the structure of a program's files says that its start reads.
    pub enable: bool,
    /// Compressed bytes that may be fetched for it and not read.
    pub max_unread_bytes: u64,
    /// Part of what the start reads that is added to that, in percent.
    pub max_unread_percent: u64,
    /// Rate of the link in bytes per second below which nothing is fetched for hints.
    pub min_link_bytes_per_sec: u64,
    /// Read what a start will need into the page cache ahead of it.
    pub fill_page_cache: bool,
}

impl Default for StartHints {
    fn default() -> Self {
        Self {
            enable: true,
            max_unread_bytes: 64 << 20,
            max_unread_percent: 100,
            min_link_bytes_per_sec: 50_000_000,
            fill_page_cache: true,
        }
    }
}

impl Section for StartHints {
    fn visit(&mut self, v: &mut impl Visitor) {
        v.flag("enable", &mut self.enable);
        v.number("max_unread_bytes", &mut self.max_unread_bytes, 0..=MAX);
        v.number("max_unread_percent", &mut self.max_unread_percent, 0..=1000);
        v.number(
            "min_link_bytes_per_sec",
            &mut self.min_link_bytes_per_sec,
            0..=MAX,
        );
        v.flag("fill_page_cache", &mut self.fill_page_cache);
    }
}
