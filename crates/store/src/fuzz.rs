//! Entry points of the fuzz targets.

use std::path::Path;

use soci_oci::Digest;

use crate::LayerKey;
use crate::spans_file::{About, SpansFile};

/// A record of stored spans in `folder` that was damaged: it is refused, or the spans on it are distinct, in
/// order, and within the layer; what is stored and removed afterwards is found so.
///
/// The first byte is the number of spans; of the rest, each 3 bytes are a position and a change to the byte
/// there.
///
/// # Panics
/// When that does not hold.
pub fn spans_file(folder: &Path, data: &[u8]) {
    let Some((&count, changes)) = data.split_first() else {
        return;
    };
    let digest = Digest::of(b"fuzz");
    let about = About {
        key: LayerKey {
            layer: digest,
            ztoc: digest,
        },
        span_count: u32::from(count),
        uncompressed_size: 1 << 20,
    };
    let path = folder.join("spans");
    if SpansFile::create(&path, about).is_err() {
        return;
    }
    let Ok(mut content) = std::fs::read(&path) else {
        return;
    };
    for change in changes.chunks_exact(3) {
        let [low, high, flip] = *change else { continue };
        // The header takes most of the file and most damages of it are the same: they hit it less often.
        let at = usize::from(u16::from_le_bytes([low, high]));
        let at = if at & 7 == 0 { at / 8 } else { 512 + at / 8 };
        if let Some(byte) = content.get_mut(at) {
            *byte ^= flip;
        } else if at & 1 == 1 {
            content.truncate(at);
        }
    }
    let damaged = std::fs::write(&path, &content);
    if damaged.is_err() {
        return;
    }
    let Ok(Some((mut file, kept))) = SpansFile::open(&path, about) else {
        return;
    };
    assert!(kept.iter().all(|kept| kept.span < about.span_count));
    assert!(kept.is_sorted_by(|one, next| one.span < next.span));
    if let Some(first) = kept.first() {
        let removed = file.clear(&[first.span]);
        drop(file);
        if let (Ok(()), Ok(Some((_, left)))) = (removed, SpansFile::open(&path, about)) {
            assert_eq!(left, kept.get(1..).unwrap_or_default());
        }
    }
}
