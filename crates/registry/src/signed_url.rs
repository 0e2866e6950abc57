//! The expiry of signed object-storage URLs, as far as their query states it.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use url::Url;

/// Time before its expiry in which a URL is not used any more.
const MARGIN: Duration = Duration::from_secs(20);

/// Returns how long from `now` the URL can be used. `None` if it does not state its expiry, or has
/// expired although it was just issued (clocks differ, and its statement is useless).
pub(crate) fn usable_for(url: &Url, now: SystemTime) -> Option<Duration> {
    let left = expiry(url)?.duration_since(now).ok()?;
    left.checked_sub(MARGIN)
}

fn expiry(url: &Url) -> Option<SystemTime> {
    let value = |wanted: &str| {
        url.query_pairs()
            .find(|(name, _)| name.eq_ignore_ascii_case(wanted))
            .map(|(_, value)| value.into_owned())
    };
    // AWS Signature Version 4, and Google's V4 which has the same form.
    for vendor in ["X-Amz", "X-Goog"] {
        if let Some(lifetime) = value(&format!("{vendor}-Expires")) {
            let issued = timestamp(&value(&format!("{vendor}-Date"))?)?;
            return issued.checked_add(Duration::from_secs(lifetime.parse().ok()?));
        }
    }
    // Azure shared access signatures.
    if value("sig").is_some()
        && let Some(end) = value("se")
    {
        return timestamp(&end);
    }
    // CloudFront, and S3 before version 4: seconds since 1970.
    let end = value("Expires")?.parse().ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(end))
}

/// Parses `20260131T235959Z` or `2026-01-31T23:59:59Z` (ISO 8601, basic and extended).
fn timestamp(text: &str) -> Option<SystemTime> {
    Some(text.parse::<Timestamp>().ok()?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_signatures_carry_their_expiry() {
        let now = timestamp("20260101T000000Z").unwrap();
        let left =
            |query: &str| usable_for(&Url::parse(&format!("https://s/x?{query}")).unwrap(), now);
        let some = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(
            left("X-Amz-Date=20260101T000000Z&X-Amz-Expires=1200"),
            some(1180)
        );
        assert_eq!(
            left("X-Goog-Date=20251231T235900Z&X-Goog-Expires=160"),
            some(80)
        );
        assert_eq!(left("se=2026-01-01T00%3A10%3A00Z&sig=abc"), some(580));
        assert_eq!(left("Expires=1767225720&Signature=abc"), some(100));
        assert_eq!(left("X-Amz-Date=20200101T000000Z&X-Amz-Expires=60"), None);
        assert_eq!(
            left("X-Amz-Date=20260101T000000Z&X-Amz-Expires=99999999999999999999"),
            None
        );
        assert_eq!(left(""), None);
    }

    #[test]
    fn timestamps_agree_with_known_instants() {
        let seconds = |text| {
            let since = timestamp(text)?.duration_since(SystemTime::UNIX_EPOCH);
            Some(since.ok()?.as_secs())
        };
        assert_eq!(seconds("20240229T120000Z"), Some(1_709_208_000));
        assert_eq!(seconds("2024-02-29T12:00:00Z"), Some(1_709_208_000));
        assert_eq!(seconds("1970-01-01T00:00:00Z"), Some(0));
        for bad in [
            "",
            "Z",
            "2024-13-01T00:00:00Z",
            "20240101",
            "é0240101T000000Z",
        ] {
            assert_eq!(timestamp(bad), None, "{bad}");
        }
    }
}
