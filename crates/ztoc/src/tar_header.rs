//! One tar header block, read the way Go's archive/tar does, since zTOCs hold what that made of it.
//!
//! Formats: POSIX ustar (IEEE Std 1003.1, pax), GNU tar ("Basic Tar Format" of its manual), star, V7.

use std::ops::Range;

/// A tar block.
pub(crate) const BLOCK: usize = 512;

const NAME: Range<usize> = 0..100;
const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
const MTIME: Range<usize> = 136..148;
const CHECKSUM: Range<usize> = 148..156;
const TYPE: usize = 156;
const LINKNAME: Range<usize> = 157..257;
const MAGIC_AND_VERSION: Range<usize> = 257..265;
const UNAME: Range<usize> = 265..297;
const GNAME: Range<usize> = 297..329;
const DEVMAJOR: Range<usize> = 329..337;
const DEVMINOR: Range<usize> = 337..345;
const PREFIX: Range<usize> = 345..500;
const STAR_PREFIX: Range<usize> = 345..476;
const STAR_ATIME: Range<usize> = 476..488;
const STAR_CTIME: Range<usize> = 488..500;
const STAR_TRAILER: Range<usize> = 508..512;
const GNU_ATIME: Range<usize> = 345..357;
const GNU_CTIME: Range<usize> = 357..369;

/// What a header block says, before PAX records and GNU long names change it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: u8,
    pub(crate) name: Vec<u8>,
    pub(crate) linkname: Vec<u8>,
    pub(crate) size: i64,
    pub(crate) mode: i64,
    pub(crate) uid: i64,
    pub(crate) gid: i64,
    /// Seconds since 1970.
    pub(crate) mtime: i64,
    pub(crate) uname: Vec<u8>,
    pub(crate) gname: Vec<u8>,
    pub(crate) devmajor: i64,
    pub(crate) devminor: i64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    V7,
    Ustar,
    Star,
    Gnu,
}

impl Header {
    /// Reads a header block.
    pub(crate) fn parse(block: &[u8; BLOCK]) -> Result<Self, &'static str> {
        let format = format(block)?;
        let number = |field| number(bytes(block, field));
        let mut header = Self {
            kind: block[TYPE],
            name: text(bytes(block, NAME)).to_vec(),
            linkname: text(bytes(block, LINKNAME)).to_vec(),
            size: number(SIZE)?,
            mode: number(MODE)?,
            uid: number(UID)?,
            gid: number(GID)?,
            mtime: number(MTIME)?,
            ..Self::default()
        };
        if format == Format::V7 {
            return Ok(header);
        }
        header.uname = text(bytes(block, UNAME)).to_vec();
        header.gname = text(bytes(block, GNAME)).to_vec();
        header.devmajor = number(DEVMAJOR)?;
        header.devminor = number(DEVMINOR)?;
        let prefix = match format {
            Format::Ustar => text(bytes(block, PREFIX)),
            Format::Star => {
                number(STAR_ATIME)?;
                number(STAR_CTIME)?;
                text(bytes(block, STAR_PREFIX))
            }
            Format::Gnu => gnu_prefix(block),
            Format::V7 => &[],
        };
        if !prefix.is_empty() {
            header.name = [prefix, b"/", &header.name].concat();
        }
        Ok(header)
    }
}

/// The GNU format has times where ustar has the prefix, but Go before 1.8 wrote a prefix there:
/// a field that is not a time and is plain ASCII is a prefix.
fn gnu_prefix(block: &[u8; BLOCK]) -> &[u8] {
    let is_time = |field| {
        let field = bytes(block, field);
        field.first() == Some(&0) || number(field).is_ok()
    };
    if is_time(GNU_ATIME) && is_time(GNU_CTIME) {
        return &[];
    }
    let prefix = text(bytes(block, PREFIX));
    if prefix.is_ascii() { prefix } else { &[] }
}

fn bytes(block: &[u8; BLOCK], field: Range<usize>) -> &[u8] {
    block.get(field).unwrap_or_default()
}

/// The bytes before the first zero.
pub(crate) fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn format(block: &[u8; BLOCK]) -> Result<Format, &'static str> {
    let expected = octal(bytes(block, CHECKSUM)).map_err(|_| "its checksum is not a number")?;
    // The checksum field counts as spaces. Old Sun tars summed signed bytes.
    let (mut unsigned, mut signed) = (0_i64, 0_i64);
    for (at, byte) in block.iter().enumerate() {
        let byte = if CHECKSUM.contains(&at) { b' ' } else { *byte };
        unsigned += i64::from(byte);
        signed += i64::from(byte.cast_signed());
    }
    if expected != unsigned && expected != signed {
        return Err("its checksum is wrong");
    }
    Ok(match bytes(block, MAGIC_AND_VERSION) {
        [b'u', b's', b't', b'a', b'r', 0, ..] if bytes(block, STAR_TRAILER) == b"tar\0" => {
            Format::Star
        }
        [b'u', b's', b't', b'a', b'r', 0, ..] => Format::Ustar,
        b"ustar  \0" => Format::Gnu,
        _ => Format::V7,
    })
}

/// A number in octal digits or, with the first bit set, in big-endian two's complement (GNU).
fn number(field: &[u8]) -> Result<i64, &'static str> {
    let Some((first, rest)) = field.split_first() else {
        return Ok(0);
    };
    if first & 0x80 == 0 {
        return octal(field);
    }
    // The first byte has seven bits, the highest of which is the sign. Twelve bytes fit.
    let sign = if first & 0x40 == 0 { 0 } else { 0x40 };
    let mut value = i128::from(first & 0x3f) - sign;
    for byte in rest {
        value = (value << 8) | i128::from(*byte);
    }
    i64::try_from(value).map_err(|_| "a number in it is too large")
}

/// Octal digits with spaces and zeros around them; nothing but those is 0.
fn octal(field: &[u8]) -> Result<i64, &'static str> {
    const WRONG: &str = "a number in it is not octal";
    let is_padding = |byte: &u8| matches!(byte, b' ' | 0);
    let Some(start) = field.iter().position(|byte| !is_padding(byte)) else {
        return Ok(0);
    };
    let end = field
        .iter()
        .rposition(|byte| !is_padding(byte))
        .map_or(0, |last| last + 1);
    let mut value = 0_u64;
    for digit in text(field.get(start..end).unwrap_or_default()) {
        if !matches!(digit, b'0'..=b'7') {
            return Err(WRONG);
        }
        value = value
            .checked_mul(8)
            .and_then(|value| value.checked_add(u64::from(digit - b'0')))
            .ok_or(WRONG)?;
    }
    Ok(value.cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        assert_eq!(number(b"0000644\0"), Ok(0o644));
        assert_eq!(number(b" 644 \0\0\0"), Ok(0o644));
        assert_eq!(number(&[0; 8]), Ok(0));
        assert_eq!(
            number(&[0x80, 0, 0, 0, 0xb2, 0xd0, 0x5e, 0]),
            Ok(3_000_000_000)
        );
        assert_eq!(number(&[0xff; 8]), Ok(-1));
        assert_eq!(
            number(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]),
            Ok(-2)
        );
        let mut most = [0; 12];
        most[0] = 0x80;
        most[4] = 0x7f;
        most[5..].fill(0xff);
        assert_eq!(number(&most), Ok(i64::MAX));
        most[4] = 0x80;
        assert!(number(&most).is_err());
        assert!(number(b"0000849\0").is_err());
        assert!(number(b"12 34\0\0\0").is_err());
    }

    #[test]
    fn a_wrong_checksum_is_refused() {
        let mut header = tar::Header::new_ustar();
        header.set_path("a").unwrap();
        header.set_size(1);
        header.set_cksum();
        let mut block = *header.as_bytes();
        assert_eq!(Header::parse(&block).unwrap().name, b"a");
        block[0] = b'b';
        assert_eq!(Header::parse(&block).unwrap_err(), "its checksum is wrong");
    }
}
