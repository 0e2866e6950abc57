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
    /// Plays the prefetch artifacts that an index lists.
    pub prefetch: bool,
    /// Number of layers of an image that are fetched from at a time; `None`: no limit.
    pub layers_at_once: Option<usize>,
    /// Time without a first read of a span that ends a start.
    pub quiet: Duration,
}

impl Default for ProfileConfig {
    fn default() -> Self {
        Self {
            enable: true,
            max_size_bytes: 8 << 20,
            referrers: true,
            prefetch: true,
            layers_at_once: None,
            quiet: Duration::from_secs(10),
        }
    }
}
