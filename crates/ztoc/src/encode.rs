//! The zTOC writer. All parts are written in the order of the Go writer, so that the bytes are equal.

use crate::SpanTable;
use crate::checkpoint::Checkpoints;
use crate::flatbuffer_write::{ObjectRef, Writer};
use crate::toc::FileMetadata;
use crate::ztoc::{Compression, Ztoc, slots};

/// The bytes of a zTOC, and the offset of the checkpoints in them.
struct Encoded {
    blob: Vec<u8>,
    checkpoints_at: u64,
}

impl Ztoc {
    /// Writes the zTOC. A zTOC that was parsed gives the bytes that it was parsed from, if they were
    /// written by soci-snapshotter or by us. FlatBuffers end at 2 GiB, which is a layer of some
    /// 250 GB at the default span size; the builder refuses to make a larger one.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(self).blob
    }

    /// The table of its spans. Its [`SpanTable::window_at`] refers to the bytes that the zTOC was
    /// parsed from, or that [`Ztoc::encode`] returns when it was built.
    #[must_use]
    pub fn span_table(&self) -> SpanTable {
        let checkpoints_at = self
            .compression
            .checkpoints_at
            .0
            .unwrap_or_else(|| encode(self).checkpoints_at);
        SpanTable::of(self, checkpoints_at)
    }
}

fn encode(ztoc: &Ztoc) -> Encoded {
    // Growing would take memory for it twice: windows make up nearly all of it.
    let spans = ztoc.compression.span_digests.len();
    let entries: usize = ztoc.toc.iter().map(room).sum();
    let mut writer = Writer::with_capacity(4096 + spans * 33_000 + entries);
    let version = writer.string(ztoc.version.as_bytes());
    let build_tool = writer.string(ztoc.build_tool_identifier.as_bytes());
    let toc = toc(&mut writer, &ztoc.toc);
    let (checkpoints, info) = compression_info(&mut writer, ztoc);
    let mut root = writer.table(6);
    root.reference(slots::VERSION, version);
    root.reference(slots::BUILD_TOOL, build_tool);
    root.reference(slots::TOC, toc);
    root.i64(
        slots::COMPRESSED_SIZE,
        ztoc.compressed_archive_size.cast_signed(),
    );
    root.i64(
        slots::UNCOMPRESSED_SIZE,
        ztoc.uncompressed_archive_size.cast_signed(),
    );
    root.reference(slots::COMPRESSION_INFO, info);
    let root = root.end();
    let blob = writer.finish(root);
    // A vector's place is that of its length, four bytes before its first element.
    let checkpoints_at = Writer::position(checkpoints, blob.len()) + 4;
    Encoded {
        checkpoints_at: checkpoints_at as u64,
        blob,
    }
}

/// At least as many bytes as an entry takes: its table, its reference in the vector of entries, and its
/// strings, each with length, zero and padding.
fn room(entry: &FileMetadata) -> usize {
    const TABLE: usize = 128;
    const STRING: usize = 8;
    const RECORD: usize = 24;
    let strings = [
        &entry.name[..],
        entry.file_type.as_str().as_bytes(),
        &entry.linkname,
        &entry.uname,
        &entry.gname,
        entry.mod_time.as_bytes(),
    ];
    let strings = strings.iter().map(|text| STRING + text.len());
    let records = entry.xattrs.iter();
    let records = records.map(|(key, value)| RECORD + 2 * STRING + key.len() + value.len());
    TABLE + strings.chain(records).sum::<usize>()
}

fn compression_info(writer: &mut Writer, ztoc: &Ztoc) -> (ObjectRef, ObjectRef) {
    let checkpoints = match &ztoc.compression.checkpoints {
        Checkpoints::Gzip(gzip) => gzip.write(writer),
        Checkpoints::Tar(tar) => {
            let bytes = tar.encode();
            writer.start_bytes(bytes.len());
            writer.vector_bytes(&bytes);
            writer.end_bytes(bytes.len())
        }
    };
    let digests: Vec<ObjectRef> = ztoc
        .compression
        .span_digests
        .iter()
        .map(|digest| writer.string(digest.to_string().as_bytes()))
        .collect();
    let max_span = i32::try_from(digests.len()).unwrap_or(i32::MAX) - 1;
    let digests = writer.references(&digests);
    let mut info = writer.table(4);
    info.i32(slots::MAX_SPAN_ID, max_span);
    info.reference(slots::SPAN_DIGESTS, digests);
    info.reference(slots::CHECKPOINTS, checkpoints);
    let algorithm = match ztoc.compression.algorithm {
        Compression::Gzip => 1,
        Compression::Uncompressed => 2,
    };
    info.i8(slots::ALGORITHM, algorithm, 1);
    (checkpoints, info.end())
}

fn toc(writer: &mut Writer, entries: &[FileMetadata]) -> ObjectRef {
    let mut places: Vec<ObjectRef> = entries
        .iter()
        .rev()
        .map(|entry| metadata(writer, entry))
        .collect();
    places.reverse();
    let entries = writer.references(&places);
    let mut toc = writer.table(1);
    toc.reference(0, entries);
    toc.end()
}

fn metadata(writer: &mut Writer, entry: &FileMetadata) -> ObjectRef {
    use slots::entry as slot;
    let name = writer.string(&entry.name);
    let kind = writer.string(entry.file_type.as_str().as_bytes());
    let linkname = writer.string(&entry.linkname);
    let uname = writer.string(&entry.uname);
    let gname = writer.string(&entry.gname);
    let mod_time = writer.string(entry.mod_time.as_bytes());
    let records: Vec<ObjectRef> = entry
        .xattrs
        .iter()
        .map(|(key, value)| {
            let key = writer.string(key);
            let value = writer.string(value);
            let mut record = writer.table(2);
            record.reference(0, key);
            record.reference(1, value);
            record.end()
        })
        .collect();
    let records = writer.references(&records);
    let mut table = writer.table(14);
    table.reference(slot::NAME, name);
    table.reference(slot::TYPE, kind);
    table.i64(slot::OFFSET, entry.uncompressed_offset.cast_signed());
    table.i64(slot::SIZE, entry.uncompressed_size.cast_signed());
    table.reference(slot::LINKNAME, linkname);
    table.i64(slot::MODE, i64::from(entry.mode));
    table.u32(slot::UID, entry.uid);
    table.u32(slot::GID, entry.gid);
    table.reference(slot::UNAME, uname);
    table.reference(slot::GNAME, gname);
    table.reference(slot::MOD_TIME, mod_time);
    table.i64(slot::DEVMAJOR, entry.devmajor);
    table.i64(slot::DEVMINOR, entry.devminor);
    table.reference(slot::XATTRS, records);
    table.end()
}
