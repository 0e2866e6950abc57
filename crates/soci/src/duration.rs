//! Durations as Go writes them: `300ms`, `1m30s`, `2h`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A duration in a flag, printed in its largest unit that leaves no remainder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FlagDuration(pub(crate) Duration);

impl FromStr for FlagDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse(text).map(Self)
    }
}

impl fmt::Display for FlagDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.as_secs(), self.0.subsec_nanos()) {
            (0, 0) => f.write_str("0s"),
            (seconds, 0) if seconds % 3600 == 0 => write!(f, "{}h", seconds / 3600),
            (seconds, 0) if seconds % 60 == 0 => write!(f, "{}m", seconds / 60),
            (seconds, 0) => write!(f, "{seconds}s"),
            _ => write!(f, "{}ns", self.0.as_nanos()),
        }
    }
}

/// Reads a duration of non-negative decimal numbers with units.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a duration such as 30s, 1m30s or 500ms");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut seconds = 0.0_f64;
    if rest.is_empty() {
        return Err(bad());
    }
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(bad)?;
        let (number, after) = rest.split_at(digits);
        let unit_end = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let unit = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(bad()),
        };
        seconds += number.parse::<f64>().map_err(|_| bad())? * unit;
        rest = after;
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, milliseconds) in [
            ("30s", 30_000),
            ("1m30s", 90_000),
            ("1.5h", 5_400_000),
            ("250ms", 250),
            ("0", 0),
        ] {
            assert_eq!(
                parse(text),
                Ok(Duration::from_millis(milliseconds)),
                "{text}"
            );
        }
        for text in ["0s", "7s", "90s", "5m", "36h", "1500000000ns"] {
            assert_eq!(FlagDuration::from_str(text).unwrap().to_string(), text);
        }
        for bad in ["", "30", "s", "1x", "1s2", "-1s", "..s"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
