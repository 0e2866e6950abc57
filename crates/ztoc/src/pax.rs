//! PAX extended headers (IEEE Std 1003.1, pax, "pax Extended Header"), as lenient as Go's reader.

use std::collections::BTreeMap;

use crate::tar_header::Header;

/// PAX records by key.
pub(crate) type Records = BTreeMap<Vec<u8>, Vec<u8>>;

/// A time: seconds since 1970 and nanoseconds to add, negative where the text is.
pub(crate) type Time = (i64, i32);

const BAD_RECORD: &str = "its PAX records are malformed";

/// Reads the data of an extended header: `LENGTH KEY=VALUE\n`, where the length counts the whole
/// record. The last of several records with one key wins.
pub(crate) fn parse(mut data: &[u8]) -> Result<Records, &'static str> {
    let mut records = Records::new();
    while !data.is_empty() {
        let space = data
            .iter()
            .position(|byte| *byte == b' ')
            .ok_or(BAD_RECORD)?;
        let (digits, _) = data.split_at(space);
        let len: usize = integer(digits)
            .and_then(|len| usize::try_from(len).ok())
            .filter(|len| (5..=data.len()).contains(len) && *len > space + 1)
            .ok_or(BAD_RECORD)?;
        let (record, rest) = data.split_at(len);
        data = rest;
        let record = record
            .get(space + 1..)
            .and_then(|record| record.strip_suffix(b"\n"));
        let record = record.ok_or(BAD_RECORD)?;
        let equals = record
            .iter()
            .position(|byte| *byte == b'=')
            .ok_or(BAD_RECORD)?;
        let (key, value) = record.split_at(equals);
        let value = value.get(1..).unwrap_or_default();
        let checked = match key {
            b"path" | b"linkpath" | b"uname" | b"gname" => value,
            _ => key,
        };
        if key.is_empty() || checked.contains(&0) {
            return Err(BAD_RECORD);
        }
        records.insert(key.to_vec(), value.to_vec());
    }
    Ok(records)
}

/// Returns whether the file has holes that the tar leaves out (GNU tar's PAX formats 0.0 to 1.0).
pub(crate) fn is_sparse(records: &Records) -> bool {
    let value = |key: &[u8]| records.get(key).map_or(&b""[..], Vec::as_slice);
    match (value(b"GNU.sparse.major"), value(b"GNU.sparse.minor")) {
        (b"0", b"0" | b"1") | (b"1", b"0") => true,
        (b"", b"") => {
            !value(b"GNU.sparse.map").is_empty() || records.contains_key(&b"GNU.sparse.offset"[..])
        }
        _ => false,
    }
}

/// The name of such a file; the one in its header may be made up.
pub(crate) fn sparse_name(records: &Records) -> Option<&Vec<u8>> {
    records
        .get(&b"GNU.sparse.name"[..])
        .filter(|name| !name.is_empty())
}

/// Applies records over the header's fields; empty ones are ignored. Returns the time if there is one.
pub(crate) fn apply(records: &Records, header: &mut Header) -> Result<Option<Time>, &'static str> {
    const BAD_NUMBER: &str = "a number in its PAX records is malformed";
    let mut mtime = None;
    for (key, value) in records.iter().filter(|(_, value)| !value.is_empty()) {
        match key.as_slice() {
            b"path" => header.name.clone_from(value),
            b"linkpath" => header.linkname.clone_from(value),
            b"uname" => header.uname.clone_from(value),
            b"gname" => header.gname.clone_from(value),
            b"uid" => header.uid = integer(value).ok_or(BAD_NUMBER)?,
            b"gid" => header.gid = integer(value).ok_or(BAD_NUMBER)?,
            b"size" => header.size = integer(value).ok_or(BAD_NUMBER)?,
            b"mtime" => mtime = Some(time(value).ok_or(BAD_NUMBER)?),
            b"atime" | b"ctime" => {
                time(value).ok_or(BAD_NUMBER)?;
            }
            _ => {}
        }
    }
    Ok(mtime)
}

fn integer(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds with any number of decimals, of which nine count.
fn time(text: &[u8]) -> Option<Time> {
    let (seconds, decimals) = match text.iter().position(|byte| *byte == b'.') {
        Some(point) => (text.get(..point)?, text.get(point + 1..)?),
        None => (text, &b""[..]),
    };
    if !decimals.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let mut nanoseconds = 0;
    for place in 0..9 {
        let digit = decimals.get(place).map_or(0, |digit| digit - b'0');
        nanoseconds = nanoseconds * 10 + i32::from(digit);
    }
    let negative = seconds.first() == Some(&b'-');
    Some((
        integer(seconds)?,
        if negative { -nanoseconds } else { nanoseconds },
    ))
}

/// The time the way Go's `MarshalText` writes it, in UTC so that the same layer gives the same zTOC
/// everywhere. Empty outside the years 0 to 9999, which RFC 3339 cannot say.
pub(crate) fn rfc3339((seconds, nanoseconds): Time) -> String {
    /// 0000-01-01 and 9999-12-31.
    const WRITABLE: std::ops::RangeInclusive<i64> = -62_167_219_200..=253_402_300_799;
    let borrow = i64::from(nanoseconds < 0);
    let seconds = seconds.saturating_sub(borrow);
    let nanoseconds = if nanoseconds < 0 {
        nanoseconds + 1_000_000_000
    } else {
        nanoseconds
    };
    if !WRITABLE.contains(&seconds) {
        return String::new();
    }
    // Whole days are far inside what jiff can say, but for the last of the year 9999.
    jiff::civil::date(1970, 1, 1)
        .at(0, 0, 0, 0)
        .checked_add(jiff::SignedDuration::new(seconds, nanoseconds))
        .map_or_else(|_| String::new(), |time| format!("{time}Z"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_go_does() {
        for (text, written) in [
            ("0", "1970-01-01T00:00:00Z"),
            ("1700000000.123456789", "2023-11-14T22:13:20.123456789Z"),
            ("1700000000.1200000000009", "2023-11-14T22:13:20.12Z"),
            ("-1.5", "1969-12-31T23:59:58.5Z"),
            ("-0.5", "1969-12-31T23:59:59.5Z"),
            ("-62135596800", "0001-01-01T00:00:00Z"),
            ("-62167219200", "0000-01-01T00:00:00Z"),
            ("253402300799", "9999-12-31T23:59:59Z"),
            ("253402300800", ""),
            ("-62167219200.5", ""),
        ] {
            assert_eq!(rfc3339(time(text.as_bytes()).unwrap()), written, "{text}");
        }
        for bad in ["", ".5", "1.x", "1-1", "0x1"] {
            assert_eq!(time(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn malformed_records_are_refused() {
        let records = parse(b"12 path=a/b\n9 path=c\n7 uid=\n8 k\xff=\0v\n").unwrap();
        assert_eq!(records[&b"path"[..]], b"c");
        assert_eq!(records[&b"uid"[..]], b"");
        assert_eq!(records[&b"k\xff"[..]], b"\0v");
        for bad in [
            &b"12"[..],
            b"x path=a\n",
            b"99 path=a\n",
            b"4 =\n",
            b"6 =ab\n",
            b"12 path=a\0b\n",
            b"8 ab\0=c\n",
            b"8 path=a\n",
            b"-5 a=b\n",
        ] {
            assert!(parse(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }
}
