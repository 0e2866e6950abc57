//! Compression of layer blobs, detected by their first bytes as containerd does.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

/// Size of the buffer for compressed data, in bytes.
const BUFFER: usize = 256 << 10;
/// RFC 1952, 2.3.1.
const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b, 0x08];
/// RFC 8878, 3.1.1.
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// RFC 8878, 3.1.2: the low four bits of the first byte may be anything.
const ZSTD_SKIPPABLE: &[u8] = &[0x2a, 0x4d, 0x18];

/// Bytes that tell the compression, and zstd's window: the longest header of a frame.
pub(crate) const HEAD: usize = 18;
/// The largest window that is accepted, as by the zstd program without options.
const MAX_WINDOW_LOG: u32 = 27;
/// The window of level 19, the highest but for `--ultra`.
const USUAL_WINDOW_LOG: u32 = 23;

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
pub fn decompress<'r>(mut blob: impl Read + Send + 'r) -> io::Result<Box<dyn Read + Send + 'r>> {
    let mut head = Vec::with_capacity(HEAD);
    blob.by_ref().take(HEAD as u64).read_to_end(&mut head)?;
    let compression = Compression::detect(&head);
    let whole = BufReader::with_capacity(BUFFER, io::Cursor::new(head).chain(blob));
    Ok(match compression {
        Compression::Gzip => Box::new(MultiGzDecoder::new(whole)),
        Compression::Zstd => Box::new(zstd_reader(whole, MAX_WINDOW_LOG)?),
        Compression::None => Box::new(whole),
    })
}

/// The uncompressed bytes of frames of zstd. A window of more than two to the power of `window_log` is
/// an error.
pub(crate) fn zstd_reader<R: BufRead>(
    blob: R,
    window_log: u32,
) -> io::Result<zstd::stream::read::Decoder<'static, R>> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(blob)?;
    decoder.window_log_max(window_log.min(MAX_WINDOW_LOG))?;
    Ok(decoder)
}

/// Base-2 logarithm of the memory in bytes for the windows of all frames, by the first bytes of a blob.
/// Frames after the first may need as much as the first, or what usual levels need.
pub(crate) fn window_log(head: &[u8]) -> u32 {
    zstd_window_log(head).unwrap_or(0).max(USUAL_WINDOW_LOG)
}

/// Base-2 logarithm, rounded up, of the window that a frame's header requests (RFC 8878, 3.1.1.1).
fn zstd_window_log(frame: &[u8]) -> Option<u32> {
    if !frame.starts_with(ZSTD_MAGIC) {
        return None;
    }
    let descriptor = *frame.get(4)?;
    let single_segment = descriptor & 0x20 != 0;
    if !single_segment {
        let window = *frame.get(5)?;
        let mantissa = u32::from(window & 7 != 0);
        return Some(10 + u32::from(window >> 3) + mantissa);
    }
    let dictionary = [0, 1, 2, 4].get(usize::from(descriptor & 3)).copied()?;
    let length = [1, 2, 4, 8].get(usize::from(descriptor >> 6)).copied()?;
    let from = 5 + dictionary;
    let mut size = [0; 8];
    size.get_mut(..length)?
        .copy_from_slice(frame.get(from..from + length)?);
    let size = u64::from_le_bytes(size).saturating_add(if length == 2 { 256 } else { 0 });
    Some(u64::BITS - size.saturating_sub(1).leading_zeros())
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
    fn the_window_of_a_frame_is_known_before_it_is_read() {
        let log = |bytes: &[u8], level| {
            let frame = zstd::encode_all(bytes, level).unwrap();
            window_log(&frame)
        };
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(27).unwrap();
        encoder.write_all(&[7; 100]).unwrap();
        let wide = encoder.finish().unwrap();
        assert_eq!(window_log(&wide), 27);
        assert_eq!(log(&[7; 100], 3), USUAL_WINDOW_LOG);
        let size_of_segment = |bytes: &[u8]| zstd_window_log(bytes);
        let frame = |rest: &[u8]| [ZSTD_MAGIC, rest].concat();
        let segment = frame(&[0b1010_0000, 1, 0, 0, 4]);
        assert_eq!(size_of_segment(&segment), Some(27));
        assert_eq!(size_of_segment(&frame(&[0])), None);
        // A frame that needs more than the first said is refused.
        let mut narrow = zstd::encode_all(&[7; 100][..], 3).unwrap();
        narrow.extend_from_slice(&wide);
        let mut reader = zstd_reader(&narrow[..], window_log(&narrow)).unwrap();
        let read = reader.read_to_end(&mut Vec::new());
        assert!(read.is_err());
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
