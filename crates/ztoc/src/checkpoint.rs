//! Checkpoints: where a stream can be entered, and what is needed to do so.

use crate::ZtocError;
use crate::allocation::LARGE_CAPACITY;
use crate::flatbuffer_read::Table;
use crate::flatbuffer_write::{ObjectRef, Writer};

/// How far deflate looks back, and so the length of a checkpoint's window (RFC 1951, section 3.2.5).
pub const WINDOW_SIZE: usize = 32768;

/// `i32 count, i64 span_size`, little-endian.
const BLOB_HEADER: usize = 12;
/// `i64 in, i64 out, u8 bits`, little-endian, before each window.
const POINT_HEADER: usize = 17;
/// What one checkpoint takes in the blob.
const POINT_SIZE: usize = POINT_HEADER + WINDOW_SIZE;
/// The length of a gzip header without optional fields (RFC 1952, section 2.3), which is where the
/// implied first checkpoint of old zTOCs is.
const IMPLIED_INPUT: u64 = 10;

/// A place where inflating can start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// The first whole compressed byte that is to be read.
    pub input: u64,
    /// The uncompressed offset that it stands for.
    pub output: u64,
    /// How many high bits of the compressed byte before `input` come first, 0 to 7.
    pub bits: u8,
}

/// The checkpoints of a gzip layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GzipCheckpoints {
    /// The span size that it was built with, in bytes of output.
    pub span_size: u64,
    /// The checkpoints in ascending order; span `i` begins at the `i`-th.
    pub points: Vec<Checkpoint>,
    /// The windows of all checkpoints that are stored, one after another.
    windows: Vec<u8>,
    /// The first checkpoint is implied and has no window (zTOCs of soci 0.4 and older).
    first_implied: bool,
}

/// The spans of a plain tar layer: all have the same size but the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TarZinfo {
    /// The version of the structure, 2.
    pub version: i32,
    /// The size of every span but the last, in bytes.
    pub span_size: u64,
    /// The size of the layer in bytes.
    pub size: u64,
}

/// The positions at which the spans of a zTOC begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checkpoints {
    /// Checkpoints of a gzip layer.
    Gzip(GzipCheckpoints),
    /// Spans of a plain tar layer.
    Tar(TarZinfo),
}

impl Checkpoints {
    /// The span size that the zTOC was built with, in bytes.
    #[must_use]
    pub const fn span_size(&self) -> u64 {
        match self {
            Self::Gzip(gzip) => gzip.span_size,
            Self::Tar(tar) => tar.span_size,
        }
    }
}

/// Takes the next `N` bytes off the front.
fn take<const N: usize>(blob: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = blob.split_first_chunk::<N>()?;
    *blob = tail;
    Some(*head)
}

fn invalid(what: impl Into<String>) -> ZtocError {
    ZtocError::Invalid(what.into())
}

impl GzipCheckpoints {
    pub(crate) fn new(span_size: u64) -> Self {
        Self {
            span_size,
            points: Vec::new(),
            windows: Vec::with_capacity(LARGE_CAPACITY),
            first_implied: false,
        }
    }

    /// Adds a checkpoint with its window, the last [`WINDOW_SIZE`] bytes before it.
    pub(crate) fn push(&mut self, point: Checkpoint, window: &[u8]) {
        debug_assert_eq!(window.len(), WINDOW_SIZE);
        self.points.push(point);
        self.windows.extend_from_slice(window);
    }

    /// Reads the checkpoints of a zTOC.
    ///
    /// # Errors
    /// [`ZtocError::Invalid`] for another length than the count calls for, and for checkpoints that
    /// do not follow one another.
    #[doc(hidden)]
    pub fn parse(blob: &[u8]) -> Result<Self, ZtocError> {
        Self::parse_with(blob, true)
    }

    pub(crate) fn parse_with(blob: &[u8], keep_windows: bool) -> Result<Self, ZtocError> {
        let mut rest = blob;
        let header = take(&mut rest)
            .map(i32::from_le_bytes)
            .zip(take(&mut rest).map(i64::from_le_bytes));
        let (count, span_size) = header
            .ok_or_else(|| invalid(format!("its checkpoints have only {} bytes", blob.len())))?;
        let stored = rest.len() / POINT_SIZE;
        let first_implied = match usize::try_from(count) {
            Ok(count) if count >= 1 && rest.len() == stored * POINT_SIZE && stored == count => {
                false
            }
            Ok(count) if count >= 1 && rest.len() == stored * POINT_SIZE && stored == count - 1 => {
                true
            }
            _ => {
                return Err(invalid(format!(
                    "its {} bytes of checkpoints do not fit their number, {count}",
                    blob.len()
                )));
            }
        };
        let span_size = u64::try_from(span_size)
            .map_err(|_| invalid(format!("its span size is negative: {span_size}")))?;
        let mut parsed = Self {
            span_size,
            points: Vec::with_capacity(stored + usize::from(first_implied)),
            windows: Vec::with_capacity(if keep_windows {
                stored * WINDOW_SIZE
            } else {
                0
            }),
            first_implied,
        };
        if first_implied {
            parsed.points.push(Checkpoint {
                input: IMPLIED_INPUT,
                output: 0,
                bits: 0,
            });
        }
        for point in rest.chunks_exact(POINT_SIZE) {
            let Some((head, window)) = point.split_first_chunk::<POINT_HEADER>() else {
                continue;
            };
            let mut head = head.as_slice();
            let input = take(&mut head)
                .map(i64::from_le_bytes)
                .and_then(|at| u64::try_from(at).ok());
            let output = take(&mut head)
                .map(i64::from_le_bytes)
                .and_then(|at| u64::try_from(at).ok());
            let bits = take(&mut head).map(|[bits]| bits);
            let (Some(input), Some(output), Some(bits)) = (input, output, bits) else {
                return Err(invalid("a checkpoint has a negative offset"));
            };
            parsed.points.push(Checkpoint {
                input,
                output,
                bits,
            });
            if keep_windows {
                parsed.windows.extend_from_slice(window);
            }
        }
        parsed.check_order()?;
        Ok(parsed)
    }

    /// Checkpoints follow one another, and the first is at the start of the output. Two may have
    /// the same output where blocks are empty, but each block takes at least ten bits of input.
    fn check_order(&self) -> Result<(), ZtocError> {
        if let Some(bad) = self.points.iter().find(|point| point.bits > 7) {
            return Err(invalid(format!(
                "a checkpoint has {} bits, more than 7",
                bad.bits
            )));
        }
        match self.points.first() {
            Some(first) if first.output == 0 && first.input >= IMPLIED_INPUT => {}
            _ => {
                return Err(invalid(
                    "its first checkpoint is not at the start of the stream",
                ));
            }
        }
        for pair in self.points.windows(2) {
            if let [before, after] = pair
                && (after.input <= before.input || after.output < before.output)
            {
                return Err(invalid(format!(
                    "its checkpoints are not in order: {},{} follows {},{}",
                    after.input, after.output, before.input, before.output
                )));
            }
        }
        Ok(())
    }

    /// The [`WINDOW_SIZE`] bytes of output before a checkpoint. `None`: all zero, or no such
    /// checkpoint.
    #[must_use]
    pub fn window(&self, index: usize) -> Option<&[u8]> {
        let stored = index.checked_sub(usize::from(self.first_implied))?;
        let start = stored.checked_mul(WINDOW_SIZE)?;
        self.windows.get(start..start.checked_add(WINDOW_SIZE)?)
    }

    #[cfg(test)]
    pub(crate) fn windows_mut(&mut self) -> &mut [u8] {
        &mut self.windows
    }

    /// Where in the blob the window of a checkpoint is, if it has one.
    pub(crate) fn window_offset(index: usize, first_implied: bool) -> Option<usize> {
        let stored = index.checked_sub(usize::from(first_implied))?;
        Some(BLOB_HEADER + stored * POINT_SIZE + POINT_HEADER)
    }

    /// Returns whether the first checkpoint is implied, without a window.
    pub(crate) const fn first_implied(&self) -> bool {
        self.first_implied
    }

    /// Writes the blob as a byte vector.
    pub(crate) fn write(&self, writer: &mut Writer) -> ObjectRef {
        let skipped = usize::from(self.first_implied);
        let stored = self.points.get(skipped..).unwrap_or_default();
        let len = BLOB_HEADER + stored.len() * POINT_SIZE;
        writer.start_bytes(len);
        for (point, window) in stored
            .iter()
            .zip(self.windows.chunks_exact(WINDOW_SIZE))
            .rev()
        {
            writer.vector_bytes(window);
            writer.vector_bytes(&[point.bits]);
            writer.vector_bytes(&point.output.to_le_bytes());
            writer.vector_bytes(&point.input.to_le_bytes());
        }
        writer.vector_bytes(&self.span_size.to_le_bytes());
        let count = u32::try_from(self.points.len()).unwrap_or(u32::MAX);
        writer.vector_bytes(&count.to_le_bytes());
        writer.end_bytes(len)
    }
}

impl TarZinfo {
    const VERSION: usize = 0;
    const SPAN_SIZE: usize = 1;
    const SIZE: usize = 2;

    pub(crate) const fn new(span_size: u64, size: u64) -> Self {
        Self {
            version: 2,
            span_size,
            size,
        }
    }

    /// Reads the checkpoints of a plain tar layer's zTOC.
    ///
    /// # Errors
    /// [`ZtocError`] when they are damaged or no span has a size.
    #[doc(hidden)]
    pub fn parse(blob: &[u8]) -> Result<Self, ZtocError> {
        let table = Table::root(blob)?;
        let parsed = Self {
            version: table.i32(Self::VERSION, "tar zinfo version")?,
            span_size: table.size(Self::SPAN_SIZE, "tar span size")?,
            size: table.size(Self::SIZE, "tar size")?,
        };
        if parsed.span_size == 0 {
            return Err(invalid("its span size is 0"));
        }
        Ok(parsed)
    }

    /// How many spans there are.
    #[must_use]
    pub const fn spans(&self) -> u64 {
        if self.span_size == 0 {
            0
        } else {
            self.size.div_ceil(self.span_size)
        }
    }

    /// Writes the structure.
    #[doc(hidden)]
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::with_capacity(64);
        let mut table = writer.table(3);
        table.i32(Self::VERSION, self.version);
        table.i64(Self::SPAN_SIZE, self.span_size.cast_signed());
        table.i64(Self::SIZE, self.size.cast_signed());
        let root = table.end();
        writer.finish(root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SpanId, Ztoc};

    /// Versions of soci before the golden ones left the first checkpoint out of the blob; made here of a golden zTOC.
    #[test]
    fn an_old_ztoc_with_an_implied_first_checkpoint_is_read_and_written() {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/kinds/");
        let blob = |name: &str| std::fs::read(format!("{root}{name}")).unwrap();
        let layer = blob(
            "image/blobs/sha256/8b49287f08fe6d79dea9c8d5531898e7768b819dd30ce0a973e9c98a8b9df69f",
        );
        let current = blob(
            "soci-v1/blobs/sha256/c503eba99e8a1049df06be37f93a020287792a4b742f14a8502f3ca4546c2479",
        );
        let mut tar = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&layer[..]), &mut tar)
            .unwrap();

        let mut old = Ztoc::parse(&current).unwrap();
        let Checkpoints::Gzip(gzip) = &mut old.compression.checkpoints else {
            panic!()
        };
        gzip.first_implied = true;
        gzip.windows.drain(..WINDOW_SIZE);
        let old_blob = old.encode();
        assert!(old_blob.len() < current.len() - WINDOW_SIZE);
        let reread = Ztoc::parse(&old_blob).unwrap();
        assert!(reread == old && reread.encode() == old_blob);

        let table = reread.span_table();
        assert_eq!(table.window_at(SpanId(0)), None);
        let at = |range: std::ops::Range<u64>| {
            usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()
        };
        let mut out = Vec::new();
        for id in (0..table.len()).map(SpanId) {
            let span = table.span(id);
            let window = table
                .window_at(id)
                .map_or(&[][..], |window| &old_blob[at(window)]);
            table
                .extract(id, &layer[at(span.compressed)], window, &mut out)
                .unwrap();
            assert!(out == tar[at(span.uncompressed)], "span {id}");
        }
    }

    #[test]
    fn checkpoints_of_any_other_length_or_order_are_refused() {
        let mut checkpoints = GzipCheckpoints::new(100);
        for (input, output) in [(10, 0), (50, 200), (90, 400)] {
            checkpoints.push(
                Checkpoint {
                    input,
                    output,
                    bits: 0,
                },
                &[7; WINDOW_SIZE],
            );
        }
        let encode = |checkpoints: &GzipCheckpoints| {
            let mut writer = Writer::with_capacity(0);
            let place = checkpoints.write(&mut writer);
            let mut table = writer.table(1);
            table.reference(0, place);
            let root = table.end();
            let buffer = writer.finish(root);
            Table::root(&buffer)
                .unwrap()
                .bytes(0, "checkpoints")
                .unwrap()
                .to_vec()
        };
        let blob = encode(&checkpoints);
        assert_eq!(GzipCheckpoints::parse(&blob).as_ref(), Ok(&checkpoints));
        for len in [
            0,
            4,
            11,
            12,
            blob.len() - 1,
            blob.len() - POINT_SIZE - 1,
            POINT_SIZE + 12,
        ] {
            assert!(GzipCheckpoints::parse(&blob[..len]).is_err(), "{len}");
        }
        for count in [-1, 0, 1, 2, 5, i32::MIN, i32::MAX] {
            let mut wrong = blob.clone();
            wrong[..4].copy_from_slice(&i32::to_le_bytes(count));
            assert!(GzipCheckpoints::parse(&wrong).is_err(), "{count}");
        }
        for (point, wrong) in [
            (
                0,
                Checkpoint {
                    input: 10,
                    output: 1,
                    bits: 0,
                },
            ),
            (
                0,
                Checkpoint {
                    input: 9,
                    output: 0,
                    bits: 0,
                },
            ),
            (
                1,
                Checkpoint {
                    input: 10,
                    output: 200,
                    bits: 0,
                },
            ),
            (
                1,
                Checkpoint {
                    input: 50,
                    output: 401,
                    bits: 0,
                },
            ),
            (
                2,
                Checkpoint {
                    input: 90,
                    output: 400,
                    bits: 8,
                },
            ),
            (
                2,
                Checkpoint {
                    input: u64::MAX,
                    output: 400,
                    bits: 0,
                },
            ),
        ] {
            let mut bad = checkpoints.clone();
            bad.points[point] = wrong;
            assert!(GzipCheckpoints::parse(&encode(&bad)).is_err(), "{wrong:?}");
        }
    }
}
