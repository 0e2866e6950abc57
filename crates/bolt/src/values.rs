//! The encodings of Go's standard library that containerd and soci put into values.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seconds from Go's zero time (1 January of the year 1) to the Unix epoch.
const ZERO_TO_EPOCH: i64 = 62_135_596_800;

/// An unsigned number as `binary.PutUvarint` writes it: seven bits a byte, lowest first. None if the
/// bytes are not one number.
#[must_use]
pub fn uvarint(bytes: &[u8]) -> Option<u64> {
    let (last, others) = bytes.split_last()?;
    if bytes.len() > 10 || last & 0x80 != 0 || others.iter().any(|byte| byte & 0x80 == 0) {
        return None;
    }
    bytes.iter().rev().try_fold(0_u64, |number, byte| {
        let shifted = number.checked_mul(128)?;
        Some(shifted | u64::from(byte & 0x7f))
    })
}

/// A signed number as `binary.PutVarint` writes it: zigzag, then as [`uvarint`].
#[must_use]
pub fn varint(bytes: &[u8]) -> Option<i64> {
    let zigzag = uvarint(bytes)?;
    let half = i64::try_from(zigzag >> 1).ok()?;
    Some(if zigzag & 1 == 0 { half } else { !half })
}

/// A time as Go's `Time.MarshalBinary` writes it: version 1 or 2, seconds since the year 1 and
/// nanoseconds, both big-endian, and the offset of a zone, which does not change the moment.
#[must_use]
pub fn time(bytes: &[u8]) -> Option<SystemTime> {
    match (bytes.first()?, bytes.len()) {
        (1, 15) | (2, 16) => {}
        _ => return None,
    }
    let seconds = i64::from_be_bytes(*bytes.get(1..)?.first_chunk()?);
    let nanoseconds = u32::from_be_bytes(*bytes.get(9..)?.first_chunk()?);
    if nanoseconds >= 1_000_000_000 {
        return None;
    }
    let since_epoch = seconds.checked_sub(ZERO_TO_EPOCH)?;
    let whole = Duration::from_secs(since_epoch.unsigned_abs());
    let second = if since_epoch < 0 {
        UNIX_EPOCH.checked_sub(whole)?
    } else {
        UNIX_EPOCH.checked_add(whole)?
    };
    second.checked_add(Duration::from_nanos(u64::from(nanoseconds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_go_writes_them() {
        assert_eq!(uvarint(&[0]), Some(0));
        assert_eq!(uvarint(&[0xac, 0x02]), Some(300));
        let most = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert_eq!(uvarint(&most), Some(u64::MAX));
        assert_eq!(varint(&most), Some(i64::MIN));
        assert_eq!(varint(&[0xa0, 0xea, 0x10]), Some(137_872));
        assert_eq!(varint(&[0x01]), Some(-1));
        let too_large = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02];
        for wrong in [&[][..], &[0x80], &[0, 0], &[0x80; 11], &too_large] {
            assert_eq!(uvarint(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn times_are_read_as_go_writes_them() {
        let mut bytes = [
            1, 0, 0, 0, 0x0e, 0xe2, 0x92, 0xfe, 0xfc, 0x28, 0xf1, 0x50, 0x35, 0xff, 0xff,
        ];
        let moment = UNIX_EPOCH + Duration::new(1_795_229_692, 686_903_349);
        assert_eq!(time(&bytes), Some(moment));
        // Another zone, the same moment; version 2 gives its offset to the second.
        bytes[14] = 60;
        assert_eq!(time(&bytes), Some(moment));
        let mut second = [&bytes[..], &[7]].concat();
        second[0] = 2;
        assert_eq!(time(&second), Some(moment));
        let zero = [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert!(time(&zero).unwrap() < UNIX_EPOCH);
        bytes[9] = 0xff;
        for wrong in [&bytes[..], &second[..15], &[], &[1]] {
            assert_eq!(time(wrong), None, "{wrong:?}");
        }
    }
}
