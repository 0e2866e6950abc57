//! The store's clock: it never goes back, wraps, and measures how long ago spans were used.

use std::time::Duration;

/// Spans of layers in use that were read within this time stay.
const RECENT: Duration = Duration::from_secs(300);
/// The store's clock advances so often per second, and with each span that is written.
const TICKS_PER_SECOND: u32 = 64;

/// Converts a time to ticks of the store's clock.
pub(crate) fn ticks(time: Duration) -> u32 {
    let ticks = time
        .as_millis()
        .saturating_mul(u128::from(TICKS_PER_SECOND))
        / 1000;
    // Wraps after two years: ages are compared, not times.
    u32::try_from(ticks & u128::from(u32::MAX)).unwrap_or(0)
}

/// The time within which spans of layers in use stay, in ticks.
pub(crate) fn recent() -> u32 {
    ticks(RECENT)
}

/// The later of two times on a clock that wraps.
pub(crate) const fn later(a: u32, b: u32) -> u32 {
    if a.wrapping_sub(b) < 1 << 31 { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_wraps_and_never_goes_back() {
        assert_eq!(later(7, 5), 7);
        assert_eq!(later(5, 7), 7);
        assert_eq!(later(2, u32::MAX - 3), 2);
        assert_eq!(ticks(Duration::from_secs(3)), 192);
    }
}
