//! Entry points of the fuzz targets: what must hold for any input. Tests run them over golden data.

use crate::parallel::Pipeline;
use crate::prefetch::Prefetch;
use crate::soci_index::SociIndex;
use crate::{
    BuildError, BuildOptions, Builder, Checkpoints, Compression, GzipCheckpoints, SpanId, TarPart,
    TarStream, TarZinfo, Ztoc,
};

/// A zTOC that is read is written and read again as the same, and garbage is not extracted.
///
/// # Panics
/// When that does not hold.
pub fn ztoc_parse(data: &[u8]) {
    let Ok(ztoc) = Ztoc::parse(data) else {
        assert!(
            Ztoc::parse_index(data.to_vec()).is_err(),
            "only one of the two readers refuses it"
        );
        return;
    };
    assert!(
        Ztoc::parse(&ztoc.encode()).as_ref() == Ok(&ztoc),
        "another zTOC comes back"
    );
    for entry in &ztoc.toc {
        let _ = (entry.mtime(), entry.posix_xattrs().count());
    }
    let table = ztoc.span_table();
    let mut out = Vec::new();
    for id in (0..table.len().min(8)).map(SpanId) {
        let span = table.span(id);
        assert!(span.compressed.start <= span.compressed.end);
        assert!(span.uncompressed.start <= span.uncompressed.end);
        assert!(span.compressed.end <= table.compressed_size());
        assert!(span.uncompressed.end <= table.uncompressed_size());
        if let Some(window) = table.window_at(id) {
            assert!(window.end <= data.len() as u64, "a window outside the zTOC");
        }
        assert!(
            table
                .extract(id, data, &[0; crate::WINDOW_SIZE], &mut out)
                .is_err()
                || out.is_empty()
        );
    }
}

/// Plain tar checkpoints that are read are written and read again as the same. Also looks for them
/// inside a zTOC.
///
/// # Panics
/// When that does not hold.
pub fn tar_zinfo(data: &[u8]) {
    let inner = Ztoc::parse(data).map(|ztoc| ztoc.compression.checkpoints);
    let parsed = match inner {
        Ok(Checkpoints::Tar(tar)) => Ok(tar),
        _ => TarZinfo::parse(data),
    };
    if let Ok(tar) = parsed {
        assert_eq!(TarZinfo::parse(&tar.encode()), Ok(tar));
        let _ = tar.spans();
    }
}

/// Gzip checkpoints are in order and each has its window, or they are refused. To keep the input
/// small, what follows the 12 bytes of the header is stretched: each 17 bytes get a window of zeros.
///
/// # Panics
/// When that does not hold.
pub fn gzip_checkpoints(data: &[u8]) {
    let (header, points) = data.split_at(data.len().min(12));
    let mut stretched = header.to_vec();
    for point in points.chunks(17).take(64) {
        stretched.extend_from_slice(point);
        stretched.extend_from_slice(&[0; crate::WINDOW_SIZE]);
    }
    for blob in [data, &stretched] {
        let Ok(gzip) = GzipCheckpoints::parse(blob) else {
            continue;
        };
        assert!(!gzip.points.is_empty());
        assert!(
            gzip.points
                .is_sorted_by(|a, b| a.input < b.input && a.output <= b.output)
        );
        assert!(gzip.points.iter().all(|point| point.bits < 8));
        let windows = (0..gzip.points.len())
            .filter(|index| gzip.window(*index).is_some())
            .count();
        assert!(
            windows + 1 >= gzip.points.len(),
            "only the first may have none"
        );
    }
}

/// An index that is read is written and read again as the same.
///
/// # Panics
/// When that does not hold.
pub fn soci_index(data: &[u8]) {
    if let Ok(index) = SociIndex::parse(data) {
        let again = SociIndex::parse(&index.encode());
        assert!(
            again.is_ok_and(|again| again == index),
            "another index comes back"
        );
    }
}

/// A prefetch artifact that is read is written and read again as the same.
///
/// # Panics
/// When that does not hold.
pub fn prefetch(data: &[u8]) {
    if let Ok(prefetch) = Prefetch::parse(data) {
        let again = Prefetch::parse(&prefetch.encode());
        assert!(
            again.is_ok_and(|again| again == prefetch),
            "another artifact comes back"
        );
    }
}

/// A layer gives the same zTOC whatever the pieces it arrives in; our reader takes it; every span of
/// it comes out, and together they are the tar.
///
/// # Panics
/// When that does not hold.
pub fn build_gzip(data: &[u8]) {
    for compression in [Compression::Gzip, Compression::Uncompressed] {
        build_one(data, compression);
    }
}

fn build_one(data: &[u8], compression: Compression) {
    let options = BuildOptions {
        span_size: 4096,
        diff_id: true,
        ..BuildOptions::default()
    };
    let build = |piece: usize| {
        let mut builder = Builder::new(compression, options.clone()).ok()?;
        for piece in data.chunks(piece) {
            builder.write(piece).ok()?;
        }
        builder.finish().ok()
    };
    let whole = build(usize::MAX);
    let threads = Pipeline::with_chunks_of(10_000).build(data, compression, options.clone());
    assert_eq!(whole.is_some(), threads.is_ok(), "threads matter");
    let (Some(whole), Some(pieces), Ok(threads)) = (whole, build(13), threads) else {
        return;
    };
    assert!(whole.ztoc == pieces.ztoc, "the pieces matter");
    assert!(whole.ztoc == threads.ztoc, "threads matter");
    assert_eq!(whole.diff_id, pieces.diff_id);
    assert_eq!(whole.diff_id, threads.diff_id);
    let blob = whole.ztoc.encode();
    let parsed = Ztoc::parse(&blob);
    assert!(
        parsed.as_ref() == Ok(&whole.ztoc),
        "our reader refuses or changes what we built"
    );
    let table = whole.ztoc.span_table();
    let at = |range: std::ops::Range<u64>| {
        let end = usize::try_from(range.end).unwrap_or(usize::MAX);
        usize::try_from(range.start).unwrap_or(usize::MAX)..end
    };
    let (mut out, mut end) = (Vec::new(), 0);
    for id in (0..table.len()).map(SpanId) {
        let span = table.span(id);
        assert_eq!(span.uncompressed.start, end, "a gap");
        end = span.uncompressed.end;
        let window = table
            .window_at(id)
            .and_then(|window| blob.get(at(window)))
            .unwrap_or_default();
        let compressed = data.get(at(span.compressed)).unwrap_or_default();
        let extracted = table.extract(id, compressed, window, &mut out);
        assert!(extracted.is_ok(), "span {id}: {extracted:?}");
    }
    assert_eq!(end, table.uncompressed_size());
}

/// A tar and its PAX records: entries and content are the same whatever the pieces they arrive in.
///
/// # Panics
/// When that does not hold.
pub fn tar_scan(data: &[u8]) {
    let scan = |piece: usize| -> Result<Vec<(crate::FileMetadata, u64)>, BuildError> {
        let mut entries = Vec::new();
        let mut stream = TarStream::new();
        for piece in data.chunks(piece) {
            stream.write(piece, |part| {
                match part {
                    TarPart::Entry(entry) => entries.push((*entry, 0)),
                    TarPart::Content(bytes) => {
                        if let Some((_, length)) = entries.last_mut() {
                            *length += bytes.len() as u64;
                        }
                    }
                }
                Ok::<_, BuildError>(())
            })?;
        }
        stream.finish()?;
        Ok(entries)
    };
    let whole = scan(usize::MAX);
    let pieces = scan(7);
    assert!(
        whole.as_ref().ok() == pieces.as_ref().ok(),
        "the pieces matter: {whole:?} {pieces:?}"
    );
    for (entry, length) in whole.into_iter().flatten() {
        assert_eq!(entry.content_len(), length, "{entry:?}");
        let _ = (entry.mtime(), entry.posix_xattrs().count());
    }
}
