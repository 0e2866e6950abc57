//! `Content-Range` (RFC 9110 section 14.4).

use std::ops::Range;

/// The bytes in a 206 response, and the size of the whole where it states it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ContentRange {
    pub(crate) bytes: Range<u64>,
    pub(crate) total: Option<u64>,
}

/// Parses `bytes first-last/total`, with `last` inclusive; `total` may be `*`.
pub(crate) fn parse_content_range(text: &str) -> Option<ContentRange> {
    let (span, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = span.trim().split_once('-')?;
    let first = number(first)?;
    let end = number(last)?.checked_add(1)?;
    let total = match total.trim() {
        "*" => None,
        total => Some(number(total)?),
    };
    if first >= end || total.is_some_and(|total| end > total) {
        return None;
    }
    Some(ContentRange {
        bytes: first..end,
        total,
    })
}

/// Parses digits; `parse` alone would accept a sign.
fn number(text: &str) -> Option<u64> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_well_formed_ranges_are_taken() {
        assert_eq!(
            parse_content_range("bytes 3-9/10"),
            Some(ContentRange {
                bytes: 3..10,
                total: Some(10)
            })
        );
        assert_eq!(parse_content_range("bytes 0-0/*").unwrap().total, None);
        for bad in [
            "",
            "bytes 9-3/10",
            "bytes 0-10/10",
            "bytes */10",
            "bytes +1-2/10",
            "items 0-1/2",
            "bytes 0-18446744073709551615/*",
            "bytes 0-1",
        ] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }
}
