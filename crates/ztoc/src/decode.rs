//! The zTOC reader. zTOCs come over the network: everything is checked.

use bytes::Bytes;
use soci_oci::Digest;

use crate::ZtocError;
use crate::checkpoint::{Checkpoints, GzipCheckpoints, TarZinfo};
use crate::entry::Entries;
use crate::flatbuffer_read::Table;
use crate::layer_index::LayerIndex;
use crate::ztoc::{BlobOffset, Compression, CompressionInfo, VERSION, Ztoc, slots};

/// Least size of an entry in a zTOC, in bytes. It bounds the number of entries when all references
/// lead to the same one.
const ENTRY_COST: usize = 96;
/// The same for a PAX record.
const RECORD_COST: usize = 24;
/// Size of a tar block, in bytes.
const BLOCK: u64 = 512;
/// Best ratio of deflate: two bits stand for 258 bytes.
const MAX_EXPANSION: u64 = 1032;

fn invalid(what: impl Into<String>) -> ZtocError {
    ZtocError::Invalid(what.into())
}

impl Ztoc {
    /// Reads a zTOC and checks it as a whole.
    ///
    /// # Errors
    /// [`ZtocError`] for anything that no writer could have meant.
    pub fn parse(blob: &[u8]) -> Result<Self, ZtocError> {
        let Parts {
            mut ztoc,
            entries,
            order,
        } = decode(blob, true)?;
        ztoc.toc = entries
            .iter(order.as_deref())
            .map(|entry| entry.to_metadata())
            .collect();
        Ok(ztoc)
    }

    /// Reads and checks a zTOC like [`Ztoc::parse`], but copies neither windows nor entries out of the
    /// blob.
    ///
    /// # Errors
    /// As [`Ztoc::parse`].
    pub fn parse_index(blob: impl Into<Bytes>) -> Result<LayerIndex, ZtocError> {
        let blob = blob.into();
        let Parts { ztoc, order, .. } = decode(&blob, false)?;
        let spans = ztoc.span_table();
        LayerIndex::new(blob, order, spans)
    }
}

/// A zTOC without its entries, and where those are.
struct Parts<'a> {
    ztoc: Ztoc,
    entries: Entries<'a>,
    /// The entries by `uncompressed_offset`, if they are stored in another order.
    order: Option<Vec<u32>>,
}

fn decode(blob: &[u8], keep_windows: bool) -> Result<Parts<'_>, ZtocError> {
    let root = Table::root(blob)?;
    let version = lossy(root.bytes(slots::VERSION, "version")?);
    if version != VERSION {
        return Err(ZtocError::Version(version.chars().take(64).collect()));
    }
    let mut budget = Budget::of(blob);
    let info = root.table(slots::COMPRESSION_INFO, "compression info")?;
    let checkpoint_bytes = info.bytes(slots::CHECKPOINTS, "checkpoints")?;
    let mut compression = compression_info(info, checkpoint_bytes, keep_windows)?;
    let checkpoints_at = checkpoint_bytes
        .as_ptr()
        .addr()
        .saturating_sub(blob.as_ptr().addr());
    compression.checkpoints_at = BlobOffset(Some(checkpoints_at as u64));
    let ztoc = Ztoc {
        version,
        build_tool_identifier: lossy(
            budget.spend(root.bytes(slots::BUILD_TOOL, "build-tool identifier")?)?,
        ),
        compressed_archive_size: root.size(slots::COMPRESSED_SIZE, "compressed size")?,
        uncompressed_archive_size: root.size(slots::UNCOMPRESSED_SIZE, "uncompressed size")?,
        toc: Vec::new(),
        compression,
    };
    let entries = Entries::of(root)?;
    let order = check_entries(&entries, ztoc.uncompressed_archive_size, &mut budget)?;
    check_spans(&ztoc)?;
    Ok(Parts {
        ztoc,
        entries,
        order,
    })
}

/// Only version and build tool are texts for people; file names stay bytes.
fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// How many bytes the entries may still come to. Nothing in the format keeps references from
/// sharing their targets, so that a small blob could stand for a huge table.
struct Budget {
    limit: usize,
    left: usize,
}

impl Budget {
    fn of(blob: &[u8]) -> Self {
        // Writers share nothing but the layout of tables: the smallest entry takes more than half of
        // what it counts as.
        let limit = blob.len().saturating_mul(2).saturating_add(4096);
        Self { limit, left: limit }
    }

    fn charge(&mut self, amount: usize) -> Result<(), ZtocError> {
        self.left = self
            .left
            .checked_sub(amount)
            .ok_or(ZtocError::TooMuchWork {
                limit: self.limit as u64,
            })?;
        Ok(())
    }

    fn spend<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], ZtocError> {
        self.charge(bytes.len())?;
        Ok(bytes)
    }
}

fn compression_info(
    info: Table<'_>,
    checkpoints: &[u8],
    keep_windows: bool,
) -> Result<CompressionInfo, ZtocError> {
    let algorithm = match info.i8(slots::ALGORITHM, 1, "compression algorithm")? {
        1 => Compression::Gzip,
        2 => Compression::Uncompressed,
        other => {
            return Err(invalid(format!(
                "its compression algorithm {other} is unknown"
            )));
        }
    };
    let digests = info.references(slots::SPAN_DIGESTS, "span digests")?;
    let max_span = info.i32(slots::MAX_SPAN_ID, "last span")?;
    if i64::try_from(digests.len()) != Ok(i64::from(max_span) + 1) {
        return Err(invalid(format!(
            "its last span is {max_span}, but it has {} span digests",
            digests.len()
        )));
    }
    let checkpoints = match algorithm {
        Compression::Gzip => {
            Checkpoints::Gzip(GzipCheckpoints::parse_with(checkpoints, keep_windows)?)
        }
        Compression::Uncompressed => Checkpoints::Tar(TarZinfo::parse(checkpoints)?),
    };
    let spans = match &checkpoints {
        Checkpoints::Gzip(gzip) => gzip.points.len() as u64,
        Checkpoints::Tar(tar) => tar.spans(),
    };
    if spans != digests.len() as u64 {
        return Err(invalid(format!(
            "it has {spans} checkpoints, but {} span digests",
            digests.len()
        )));
    }
    let mut span_digests: Vec<Digest> = Vec::with_capacity(digests.len());
    for digest in digests.strings("span digest") {
        let text = digest?;
        let digest = std::str::from_utf8(text)
            .ok()
            .and_then(|text| text.parse().ok());
        span_digests.push(digest.ok_or_else(|| {
            let text = text.get(..text.len().min(80)).unwrap_or_default();
            invalid(format!(
                "its span digest {:?} is not a sha256 digest",
                lossy(text)
            ))
        })?);
    }
    Ok(CompressionInfo {
        algorithm,
        span_digests,
        checkpoints,
        checkpoints_at: BlobOffset(None),
    })
}

/// Checks each entry, and that contents follow one another, each after a header block of its own, and
/// end inside the tar. Returns the order of the entries if it is not that in which they are stored.
fn check_entries(
    entries: &Entries<'_>,
    tar_size: u64,
    budget: &mut Budget,
) -> Result<Option<Vec<u32>>, ZtocError> {
    budget.charge(entries.len().saturating_mul(ENTRY_COST))?;
    let (mut last, mut sorted) = (0, true);
    for entry in entries.checked() {
        let entry = entry?;
        for bytes in [entry.name, entry.linkname, entry.uname, entry.gname] {
            budget.spend(bytes)?;
        }
        budget.spend(entry.mod_time.as_bytes())?;
        budget.charge(entry.record_count().saturating_mul(RECORD_COST))?;
        for record in entry.checked_records() {
            let (key, value) = record?;
            budget.spend(key)?;
            budget.spend(value)?;
        }
        sorted &= last <= entry.uncompressed_offset;
        last = entry.uncompressed_offset;
    }
    let order = (!sorted).then(|| entries.order());
    let mut next_header = 0_u64;
    for entry in entries.iter(order.as_deref()) {
        let name = || lossy(entry.name);
        if next_header.saturating_add(BLOCK) > entry.uncompressed_offset {
            return Err(invalid(format!(
                "the content of {} starts at {}, not behind a header at {next_header}",
                name(),
                entry.uncompressed_offset
            )));
        }
        let end = entry
            .uncompressed_offset
            .checked_add(entry.content_len())
            .filter(|end| *end <= tar_size)
            .ok_or_else(|| {
                invalid(format!(
                    "{} at {} with {} bytes ends behind the tar, which has {tar_size}",
                    name(),
                    entry.uncompressed_offset,
                    entry.uncompressed_size,
                ))
            })?;
        next_header = end.div_ceil(BLOCK).saturating_mul(BLOCK);
    }
    Ok(order)
}

/// Spans lie inside the layer and inflate to no more than deflate allows.
fn check_spans(ztoc: &Ztoc) -> Result<(), ZtocError> {
    let (compressed, uncompressed) = (ztoc.compressed_archive_size, ztoc.uncompressed_archive_size);
    let gzip = match &ztoc.compression.checkpoints {
        Checkpoints::Gzip(gzip) => gzip,
        Checkpoints::Tar(tar) => {
            return if tar.size == compressed && uncompressed <= compressed {
                Ok(())
            } else {
                Err(invalid(format!(
                    "its sizes do not agree: layer {compressed}, tar {uncompressed}, spans {}",
                    tar.size
                )))
            };
        }
    };
    for (index, point) in gzip.points.iter().enumerate() {
        let (end_in, end_out) = match gzip.points.get(index + 1) {
            Some(next) => (next.input, next.output),
            None => (compressed, uncompressed),
        };
        if point.input >= compressed || point.input >= end_in {
            return Err(invalid(format!(
                "span {index} starts at {}, behind the layer's {compressed} bytes",
                point.input
            )));
        }
        // One byte may be shared with the span before.
        let most = (end_in - point.input)
            .saturating_add(1)
            .saturating_mul(MAX_EXPANSION);
        if end_out.saturating_sub(point.output) > most {
            return Err(invalid(format!(
                "span {index} would inflate from {} bytes to {}, more than deflate can",
                end_in - point.input,
                end_out - point.output
            )));
        }
    }
    Ok(())
}
