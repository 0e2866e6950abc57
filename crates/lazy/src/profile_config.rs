//! Switches and limits of start-up profiles.

use std::time::Duration;

/// Switches and limits of start-up profiles.
#[derive(Debug, Clone)]
pub struct ProfileConfig {
    /// Records starts, and plays what was recorded.
    pub enable: bool,
    /// Limit of all profiles on disk, in bytes.
    pub max_size_bytes: u64,
    /// Asks the registry for a profile that refers to the image.
    pub referrers: bool,
    /// Publishes what was recorded beside the image at its registry, unless a profile is there.
    pub publish: bool,
    /// Plays the prefetch artifacts that an index lists.
    pub prefetch: bool,
    /// Number of layers of an image that are fetched from at a time; `None`: no limit.
    pub layers_at_once: Option<usize>,
    /// Rate of the link in bytes per second below which playing begins at the first read, because it
    /// would delay the rest of the pull; 0: it never does.
    pub min_link_rate: u64,
    /// Time without a first read of a span that ends a start.
    pub quiet: Duration,
}

impl Default for ProfileConfig {
    fn default() -> Self {
        Self {
            enable: true,
            max_size_bytes: 8 << 20,
            referrers: true,
            publish: false,
            prefetch: true,
            layers_at_once: None,
            min_link_rate: 50_000_000,
            quiet: Duration::from_secs(10),
        }
    }
}
