//! How long ago something was, in the form of Go's durations, to the second.

use std::time::{Duration, SystemTime};

/// `1h2m3s ago`.
pub(crate) fn ago(at: SystemTime) -> String {
    let since = SystemTime::now().duration_since(at).unwrap_or_default();
    format!("{} ago", go(since))
}

fn go(duration: Duration) -> String {
    // Go rounds half away from zero.
    let seconds = duration
        .saturating_add(Duration::from_millis(500))
        .as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

/// RFC 3339 in UTC, as short as Go writes it.
pub(crate) fn rfc3339(at: SystemTime) -> String {
    jiff::Timestamp::try_from(at).map_or_else(|_| String::new(), |at| at.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_written_as_go_writes_them() {
        for (milliseconds, text) in [
            (400, "0s"),
            (1500, "2s"),
            (60_000, "1m0s"),
            (3_600_000, "1h0m0s"),
            (266_523_000, "74h2m3s"),
        ] {
            assert_eq!(go(Duration::from_millis(milliseconds)), text);
        }
    }
}
