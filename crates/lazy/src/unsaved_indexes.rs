//! SOCI indexes in use that the disk refused to store: kept in memory until it takes them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use soci_oci::Digest;
use tokio::sync::Notify;

use crate::index_files::Origin;

/// Most bytes of indexes that are kept for another attempt.
const MOST: usize = 16 << 20;

/// An index that is not stored.
#[derive(Debug, Clone)]
pub(crate) struct Unsaved {
    pub(crate) digest: Digest,
    /// The index; `None`: too many wait, and it is not written again.
    pub(crate) bytes: Option<Bytes>,
    pub(crate) origin: Origin,
    /// Why the disk refused it the last time.
    pub(crate) error: String,
}

impl Unsaved {
    pub(crate) const fn new(digest: Digest, bytes: Bytes, origin: Origin, error: String) -> Self {
        Self {
            digest,
            bytes: Some(bytes),
            origin,
            error,
        }
    }
}

/// The indexes that are not stored, by the path of their image's note. No method blocks.
#[derive(Debug, Default)]
pub(crate) struct UnsavedIndexes {
    by_note: Mutex<HashMap<PathBuf, Unsaved>>,
    refused: Arc<Notify>,
}

impl Drop for UnsavedIndexes {
    fn drop(&mut self) {
        self.refused.notify_one();
    }
}

impl UnsavedIndexes {
    /// Adds or replaces the index of an image. Above the limit of memory only its error is kept.
    pub(crate) fn insert(&self, note: PathBuf, mut unsaved: Unsaved) {
        let mut all = self.by_note.lock();
        all.remove(&note);
        let size = |unsaved: &Unsaved| unsaved.bytes.as_ref().map_or(0, Bytes::len);
        let held: usize = all.values().map(size).sum();
        if held.saturating_add(size(&unsaved)) > MOST {
            unsaved.bytes = None;
        }
        all.insert(note, unsaved);
        self.refused.notify_one();
    }

    /// Returns what is notified when an index is added, and when all of this is dropped.
    pub(crate) fn refused(&self) -> Arc<Notify> {
        self.refused.clone()
    }

    /// Removes the index of an image: it is stored.
    pub(crate) fn remove(&self, note: &Path) {
        self.by_note.lock().remove(note);
    }

    /// Removes an index that is not used any more.
    pub(crate) fn forget(&self, digest: &Digest) {
        self.by_note
            .lock()
            .retain(|_, unsaved| unsaved.digest != *digest);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_note.lock().is_empty()
    }

    pub(crate) fn all(&self) -> Vec<(PathBuf, Unsaved)> {
        let all = self.by_note.lock();
        let all = all.iter();
        all.map(|(note, unsaved)| (note.clone(), unsaved.clone()))
            .collect()
    }

    /// The errors by index.
    pub(crate) fn errors(&self) -> HashMap<Digest, String> {
        let all = self.by_note.lock();
        let all = all.values();
        all.map(|unsaved| (unsaved.digest, unsaved.error.clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_for_another_attempt_is_bounded_and_what_is_reported_is_not() {
        let unsaved = UnsavedIndexes::default();
        let digest = |number: u8| Digest::of(&[number]);
        let bytes = Bytes::from(vec![0; MOST / 3]);
        let note = |number: u8| PathBuf::from(number.to_string());
        for number in 0..5 {
            let error = format!("error {number}");
            let index = Unsaved::new(digest(number), bytes.clone(), Origin::Fetched, error);
            unsaved.insert(note(number), index.clone());
            // Another attempt that fails does not count twice.
            unsaved.insert(note(number), index);
        }
        let kept = unsaved.all().into_iter();
        assert_eq!(kept.filter(|(_, one)| one.bytes.is_some()).count(), 3);
        assert_eq!(unsaved.errors().len(), 5);
        assert_eq!(unsaved.errors()[&digest(4)], "error 4");
        unsaved.forget(&digest(4));
        for number in 0..4 {
            assert!(!unsaved.is_empty());
            unsaved.remove(&note(number));
        }
        assert!(unsaved.is_empty());
    }
}
