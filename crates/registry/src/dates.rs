//! The few date forms that HTTP and signed URLs use, all in UTC.

use std::time::{Duration, SystemTime};

/// `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110 section 5.6.7, the one form in use).
pub(crate) fn http_date(text: &str) -> Option<SystemTime> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let rest = text.split_once(", ")?.1.strip_suffix(" GMT")?;
    let mut words = rest.split(' ');
    let day = words.next()?.parse().ok()?;
    let name = words.next()?;
    let month = u32::try_from(MONTHS.iter().position(|m| *m == name)?).ok()? + 1;
    let year = words.next()?.parse().ok()?;
    let mut clock = words.next()?.split(':').map(str::parse);
    let [hour, minute, second] = [
        clock.next()?.ok()?,
        clock.next()?.ok()?,
        clock.next()?.ok()?,
    ];
    instant([year, month, day], [hour, minute, second])
}

/// `20260131T235959Z` or `2026-01-31T23:59:59Z` (ISO 8601 basic and extended, UTC).
pub(crate) fn iso_date(text: &str) -> Option<SystemTime> {
    let digits: String = text
        .strip_suffix('Z')?
        .chars()
        .filter(|c| !matches!(c, '-' | ':' | 'T'))
        .collect();
    if !digits.is_ascii() {
        return None;
    }
    let number = |from: usize, to: usize| digits.get(from..to)?.parse::<u32>().ok();
    instant(
        [number(0, 4)?, number(4, 6)?, number(6, 8)?],
        [number(8, 10)?, number(10, 12)?, number(12, 14)?],
    )
}

fn instant([year, month, day]: [u32; 3], [hour, minute, second]: [u32; 3]) -> Option<SystemTime> {
    if !(1970..=9999).contains(&year)
        || !(1..=12).contains(&month)
        || !(1..=31).contains(&day)
        || hour > 23
        || minute > 59
        || second > 60
    {
        return None;
    }
    // Days since 1970-01-01, counting years from March so that the leap day comes last.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let [y, m, d] = [u64::from(year), u64::from(month), u64::from(day)];
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + d - 1;
    let days = days.checked_sub(719_468)?;
    let seconds =
        days * 86_400 + u64::from(hour) * 3600 + u64::from(minute) * 60 + u64::from(second);
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(time: Option<SystemTime>) -> Option<u64> {
        Some(time?.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs())
    }

    #[test]
    fn dates_agree_with_known_instants() {
        assert_eq!(
            seconds(http_date("Sun, 06 Nov 1994 08:49:37 GMT")),
            Some(784_111_777)
        );
        assert_eq!(seconds(iso_date("20240229T120000Z")), Some(1_709_208_000));
        assert_eq!(
            seconds(iso_date("2024-02-29T12:00:00Z")),
            Some(1_709_208_000)
        );
        assert_eq!(seconds(iso_date("1970-01-01T00:00:00Z")), Some(0));
        for bad in [
            "",
            "Z",
            "2024-13-01T00:00:00Z",
            "20240101",
            "é0240101T000000Z",
        ] {
            assert_eq!(iso_date(bad), None, "{bad}");
        }
        assert_eq!(http_date("Sunday, 06-Nov-94 08:49:37 GMT"), None);
    }
}
