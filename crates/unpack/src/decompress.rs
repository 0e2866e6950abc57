//! Compression of layer blobs, detected by their first bytes as containerd does.

use std::io::{self, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

/// Size of the buffer for compressed data, in bytes.
const BUFFER: usize = 256 << 10;
/// RFC 1952, 2.3.1.
const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b, 0x08];
/// RFC 8878, 3.1.1.
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// RFC 8878, 3.1.2: the low four bits of the first byte may be anything.
const ZSTD_SKIPPABLE: &[u8] = &[0x2a, 0x4d, 0x18];

/// Compression of a layer blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// gzip, of any number of members.
    Gzip,
    /// zstd, of any number of frames.
    Zstd,
    /// A plain tar.
    None,
}

impl Compression {
    /// Detects the compression by the first bytes of a blob.
    #[must_use]
    pub fn detect(head: &[u8]) -> Self {
        if head.starts_with(GZIP_MAGIC) {
            return Self::Gzip;
        }
        let skippable = head.first().is_some_and(|first| first & 0xf0 == 0x50)
            && head.get(1..4) == Some(ZSTD_SKIPPABLE);
        if head.starts_with(ZSTD_MAGIC) || skippable {
            return Self::Zstd;
        }
        Self::None
    }
}

/// The uncompressed bytes of a blob.
///
/// # Errors
/// The first bytes cannot be read.
pub fn decompress<'r>(blob: impl Read + Send + 'r) -> io::Result<Box<dyn Read + Send + 'r>> {
    let mut head = Vec::with_capacity(4);
    let mut blob = blob;
    blob.by_ref().take(4).read_to_end(&mut head)?;
    let compression = Compression::detect(&head);
    let whole = BufReader::with_capacity(BUFFER, io::Cursor::new(head).chain(blob));
    Ok(match compression {
        Compression::Gzip => Box::new(MultiGzDecoder::new(whole)),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(whole)?),
        Compression::None => Box::new(whole),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn uncompressed(blob: &[u8]) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        decompress(blob)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        writer.write_all(bytes).unwrap();
        writer.finish().unwrap()
    }

    #[test]
    fn members_and_frames_follow_each_other() {
        let gzipped = [gzip(b"one "), gzip(b"two")].concat();
        assert_eq!(uncompressed(&gzipped).unwrap(), b"one two");
        let frame = |bytes: &[u8]| zstd::encode_all(bytes, 3).unwrap();
        let skipped = [0x5a, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, b'x', b'y'];
        let frames = [&skipped[..], &frame(b"one "), &frame(b"two")].concat();
        assert_eq!(uncompressed(&frames).unwrap(), b"one two");
        assert_eq!(uncompressed(b"plain").unwrap(), b"plain");
        assert_eq!(uncompressed(b"").unwrap(), b"");
    }

    #[test]
    fn a_truncated_or_damaged_stream_is_an_error() {
        for good in [
            gzip(&[7; 9000]),
            zstd::encode_all(&[7; 9000][..], 3).unwrap(),
        ] {
            for end in 4..good.len() {
                assert!(uncompressed(&good[..end]).is_err(), "{end}");
            }
        }
        let mut wrong_sum = gzip(b"content");
        let at = wrong_sum.len() - 6;
        wrong_sum[at] ^= 1;
        assert!(uncompressed(&wrong_sum).is_err());
    }
}
