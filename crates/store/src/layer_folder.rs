//! Opening a layer's folder: `ztoc` (the blob), `data` (sparse, the uncompressed tar) and `spans`
//! (which spans are stored), each made or repaired as far as need be.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use soci_oci::Digest;
use soci_ztoc::{LayerIndex, SpanId, SpanTable, Ztoc};

use crate::atomic_file::{UNFINISHED, sync_folder, write_file};
use crate::disk_fault::fault;
use crate::span_states::{SpanStates, State};
use crate::spans_file::{About, Kept, SpansFile};
use crate::standing::Standing;
use crate::store_state::StoreState;
use crate::stored_layer::length;
use crate::{LayerKey, StoreError, StoredLayer, page_cache};

/// The longest span that is handled, in bytes, compressed or not. Span sizes in use are some MiB; a
/// deflate block, at whose ends spans are cut, adds a few at most.
const LARGEST_SPAN: u64 = 256 << 20;

/// A layer that was opened, and what was read of its zTOC.
pub(crate) struct Opened {
    pub(crate) layer: Arc<StoredLayer>,
    pub(crate) index: LayerIndex,
}

/// Returns whether the folder may have been finished.
pub(crate) fn is_usable(folder: &Path) -> bool {
    folder.join("ztoc").is_file()
}

/// Opens a layer's folder, making it if need be.
pub(crate) fn open(
    folder: &Path,
    key: LayerKey,
    ztoc_blob: Option<Bytes>,
    shared: &Arc<StoreState>,
) -> Result<Opened, StoreError> {
    let (index, window_sums) = verified_ztoc(folder, key, ztoc_blob)?;
    let spans = index.spans.clone();
    clear_unfinished(folder);
    let about = About {
        key,
        span_count: spans.len(),
        uncompressed_size: spans.uncompressed_size(),
    };
    let record_path = folder.join("spans");
    let data_path = folder.join("data");
    let (record, kept, data) = match SpansFile::open(&record_path, about)? {
        Some((record, kept)) => (record, kept, open_data(&data_path, false)?),
        None => {
            // Without a record, what is in the data file is of no use: it only takes space.
            let data = open_data(&data_path, true)?;
            (SpansFile::create(&record_path, about)?, Vec::new(), data)
        }
    };
    // Sparse. Where a crash left it too short, the checksums of the spans behind its end will not match.
    fault("store-size-data")
        .and_then(|()| data.set_len(spans.uncompressed_size()))
        .map_err(|e| StoreError::io("set the length of", &data_path, e))?;
    sync_folder(folder)?;
    page_cache::expect_random_reads(&data);
    let ztoc_path = folder.join("ztoc");
    let ztoc = File::open(&ztoc_path).map_err(|e| StoreError::io("open", &ztoc_path, e))?;
    page_cache::drop_all(&ztoc);

    let states = SpanStates::new(spans.len());
    for Kept { span, sum } in &kept {
        states.set_sum(*span, *sum, shared.now());
        states.change(*span, State::Missing, State::Unchecked);
    }
    let layer = Arc::new_cyclic(|me| StoredLayer {
        me: me.clone(),
        key,
        dir: folder.to_path_buf(),
        spans,
        states,
        data,
        ztoc,
        window_sums,
        record: Mutex::new(record),
        dirty: Mutex::default(),
        syncing: Mutex::default(),
        checking: Mutex::default(),
        fetched: AtomicU64::new(0),
        removed: AtomicBool::new(false),
        standing: Standing::default(),
        shared: shared.clone(),
    });
    for Kept { span, .. } in kept {
        layer
            .fetched
            .fetch_add(layer.weight(SpanId(span)), Ordering::Relaxed);
        if let Some(span) = layer.spans.get(SpanId(span)) {
            shared.stored.fetch_add(length(&span), Ordering::AcqRel);
        }
    }
    layer.free_unrecorded();
    Ok(Opened { layer, index })
}

/// Reads the zTOC from disk and changes nothing.
pub(crate) fn look_at(folder: &Path, key: LayerKey) -> Result<LayerIndex, StoreError> {
    let path = folder.join("ztoc");
    let blob = fs::read(&path).map_err(|e| StoreError::io("read", &path, e))?;
    let actual = Digest::of(&blob);
    if actual != key.ztoc {
        return Err(StoreError::DigestMismatch {
            what: format!("zTOC {}", path.display()),
            expected: key.ztoc,
            actual,
        });
    }
    Ztoc::parse_index(blob).map_err(|source| StoreError::Ztoc {
        digest: key.ztoc,
        source,
    })
}

/// Reads the zTOC, from disk or else as given, and leaves it on disk.
fn verified_ztoc(
    folder: &Path,
    key: LayerKey,
    given: Option<Bytes>,
) -> Result<(LayerIndex, Box<[u32]>), StoreError> {
    let path = folder.join("ztoc");
    let use_blob = |blob: Bytes| {
        let parts = Ztoc::parse_index(blob).map_err(|source| StoreError::Ztoc {
            digest: key.ztoc,
            source,
        })?;
        check_span_lengths(key.layer, &parts.spans)?;
        let sums = window_sums(&parts.spans, parts.blob());
        Ok((parts, sums))
    };
    match fs::read(&path) {
        Ok(blob) if Digest::of(&blob) == key.ztoc => return use_blob(blob.into()),
        Ok(_) => {
            tracing::warn!(path = %path.display(), "a stored zTOC is damaged; it is fetched again");
            fs::remove_file(&path).map_err(|e| StoreError::io("remove", &path, e))?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(StoreError::io("read", &path, error)),
    }
    let Some(blob) = given else {
        return Err(StoreError::NotFound {
            what: format!("zTOC {}", key.ztoc),
            path: folder.to_path_buf(),
        });
    };
    let actual = Digest::of(&blob);
    if actual != key.ztoc {
        let what = format!("the zTOC of layer {}", key.layer);
        let expected = key.ztoc;
        return Err(StoreError::DigestMismatch {
            what,
            expected,
            actual,
        });
    }
    // Parsed first: a zTOC that cannot be used leaves nothing behind.
    let parts = use_blob(blob.clone())?;
    fs::create_dir_all(folder).map_err(|e| StoreError::io("create", folder, e))?;
    write_file(&path, &blob)?;
    sync_folder(folder.parent().unwrap_or(Path::new("/")))?;
    Ok(parts)
}

/// Checks that no span of a layer is longer than any that is handled: a span is fetched and inflated
/// in memory as a whole, and its length is only what a zTOC says.
///
/// # Errors
/// [`StoreError::LargeSpan`].
pub fn check_span_lengths(layer: Digest, spans: &SpanTable) -> Result<(), StoreError> {
    for id in (0..spans.len()).map(SpanId) {
        let Some(span) = spans.get(id) else { continue };
        let compressed = span.compressed.end.saturating_sub(span.compressed.start);
        let len = compressed.max(length(&span));
        if len > LARGEST_SPAN {
            return Err(StoreError::LargeSpan {
                layer,
                span: id,
                len,
                most: LARGEST_SPAN,
            });
        }
    }
    Ok(())
}

fn window_sums(spans: &SpanTable, blob: &[u8]) -> Box<[u32]> {
    let window = |id| {
        let range = spans.window_at(SpanId(id))?;
        blob.get(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?)
    };
    (0..spans.len())
        .map(|id| window(id).map_or(0, crc32c::crc32c))
        .collect()
}

fn open_data(path: &Path, empty: bool) -> Result<File, StoreError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(empty)
        .open(path)
        .map_err(|e| StoreError::io("open", path, e))
}

/// Removes what was being written when an earlier process ended.
fn clear_unfinished(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(UNFINISHED.as_bytes())
        {
            // It takes space, nothing else.
            let _ = fs::remove_file(entry.path());
        }
    }
}
