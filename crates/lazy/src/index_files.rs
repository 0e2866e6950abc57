//! The SOCI indexes of images in use, on disk: the index in a content store, and its digest in a
//! note that is named after the image.
//!
//! Losing any of it is harmless: the registry is asked again.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use soci_oci::{Descriptor, Digest, media_types};
use soci_store::content::OciLayout;
use soci_store::write_file;
use soci_ztoc::soci_index::SociIndex;
use tokio::sync::Notify;

use crate::image_layer::ImageKey;
use crate::unsaved_indexes::{Unsaved, UnsavedIndexes};

/// The second line of a note whose index must not be removed with it.
const STORED: &str = "stored";

/// A SOCI index and its digest.
#[derive(Debug)]
pub(crate) struct FoundIndex {
    pub(crate) digest: Digest,
    pub(crate) index: SociIndex,
}

/// Where an index came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The registry: the index is kept as long as its image is in use.
    Fetched,
    /// The content store, for example from `soci create`.
    Stored,
}

/// The indexes on disk. Every method blocks on the disk. Clones share the files.
#[derive(Clone)]
pub(crate) struct IndexFiles {
    content: OciLayout,
    notes: PathBuf,
    unsaved: Arc<UnsavedIndexes>,
    /// Held while unsaved indexes are written once more, and while indexes are removed.
    alone: Arc<Mutex<()>>,
}

impl IndexFiles {
    /// `notes` is a directory for the notes alone; it is created when needed.
    pub(crate) fn new(content: OciLayout, notes: PathBuf) -> Self {
        Self {
            content,
            notes,
            unsaved: Arc::default(),
            alone: Arc::default(),
        }
    }

    /// Returns the index stored for an image; an unreadable one counts as missing.
    pub(crate) fn load(&self, image: &ImageKey) -> Option<FoundIndex> {
        let digest = match image.explicit_index {
            Some(explicit) => explicit,
            None => read(&self.note(image))?,
        };
        if !self.content.contains(&digest) {
            return None;
        }
        let bytes = self.content.get(&digest).ok()?;
        let index = SociIndex::parse(&bytes).ok()?;
        Some(FoundIndex { digest, index })
    }

    /// Stores an index. One that the disk refuses is kept in memory for [`save_again`](Self::save_again).
    pub(crate) fn save(&self, image: &ImageKey, digest: Digest, bytes: &Bytes, origin: Origin) {
        let note = self.note(image);
        match self.write(&note, digest, bytes, origin) {
            Ok(()) => self.unsaved.remove(&note),
            Err(error) => {
                tracing::warn!(digest = %digest, error, "cannot store the SOCI index on disk");
                let bytes = bytes.clone();
                let unsaved = Unsaved::new(digest, bytes, origin, error);
                self.unsaved.insert(note, unsaved);
            }
        }
    }

    /// Writes the indexes that the disk refused once more. Returns whether any is left.
    pub(crate) fn save_again(&self) -> bool {
        let _alone = self.alone.lock();
        for (note, unsaved) in self.unsaved.all() {
            let Some(bytes) = &unsaved.bytes else {
                continue;
            };
            let digest = unsaved.digest;
            match self.write(&note, digest, bytes, unsaved.origin) {
                Ok(()) => {
                    self.unsaved.remove(&note);
                    tracing::info!(digest = %digest, "stored the SOCI index on disk");
                }
                Err(error) => self.unsaved.insert(note, Unsaved { error, ..unsaved }),
            }
        }
        !self.unsaved.is_empty()
    }

    /// Returns why indexes in use are not stored: the errors of the disk, by index.
    pub(crate) fn errors(&self) -> HashMap<Digest, String> {
        self.unsaved.errors()
    }

    /// Returns what is notified when the disk refuses an index, and when this is dropped.
    pub(crate) fn refused(&self) -> Arc<Notify> {
        self.unsaved.refused()
    }

    fn write(
        &self,
        path: &Path,
        digest: Digest,
        bytes: &[u8],
        origin: Origin,
    ) -> Result<(), String> {
        // An index that only containerd has is copied, and the copy is removed with its image.
        let note = if origin == Origin::Stored && self.content.contains(&digest) {
            format!("{digest}\n{STORED}\n")
        } else {
            digest.to_string()
        };
        let descriptor = Descriptor::new(media_types::OCI_MANIFEST, digest, bytes.len() as u64);
        // The note first: a crash leaves no index without a note.
        fs::create_dir_all(&self.notes)
            .map_err(|error| format!("cannot create {}: {error}", self.notes.display()))?;
        write_file(path, note.as_bytes()).map_err(|error| soci_errors::chain(&error))?;
        soci_faults::point("lazy-index-noted");
        let put = self.content.put(&descriptor, bytes);
        put.map(drop).map_err(|error| soci_errors::chain(&error))
    }

    /// Removes an index that no layer uses any more, and the notes of all images that it was found for.
    pub(crate) fn forget(&self, digest: &Digest) {
        let _alone = self.alone.lock();
        self.unsaved.forget(digest);
        let notes = self.all_notes();
        let notes: Vec<_> = notes
            .filter(|note| read(note).as_ref() == Some(digest))
            .collect();
        self.remove(&notes, digest);
    }

    /// The directory does not exist before the first image.
    fn all_notes(&self) -> impl Iterator<Item = PathBuf> {
        let entries = fs::read_dir(&self.notes).into_iter().flatten().flatten();
        entries.map(|entry| entry.path())
    }

    /// Removes the indexes of images other than these, which a crash may have left.
    pub(crate) fn sweep(&self, in_use: &HashSet<ImageKey>) {
        let _alone = self.alone.lock();
        let in_use: HashSet<PathBuf> = in_use.iter().map(|image| self.note(image)).collect();
        let indexes: HashSet<Digest> = in_use.iter().filter_map(|note| read(note)).collect();
        for note in self.all_notes() {
            if in_use.contains(&note) {
                continue;
            }
            match read(&note) {
                Some(digest) if !indexes.contains(&digest) => self.remove(&[note], &digest),
                // It says that the index is removed with its last image.
                Some(_) if is_ours(&note) => {}
                _ => remove_note(&note),
            }
        }
    }

    /// Removes an index and then its notes.
    fn remove(&self, notes: &[PathBuf], digest: &Digest) {
        if notes.iter().any(|note| is_ours(note))
            && let Err(error) = self.content.delete(digest)
        {
            tracing::warn!(digest = %digest, error = %error, "cannot remove a SOCI index");
        }
        soci_faults::point("lazy-index-removed");
        notes.iter().for_each(|note| remove_note(note));
    }

    /// Returns the path of an image's note. It contains repository and manifest: write access to one
    /// repository must not decide which index (v1: any referrer of the manifest) is used for an
    /// image of another.
    fn note(&self, image: &ImageKey) -> PathBuf {
        let mut name = format!("{}@{}", image.reference.name(), image.manifest);
        if let Some(explicit) = image.explicit_index {
            name = format!("{name}#{explicit}");
        }
        self.notes.join(Digest::of(name.as_bytes()).hex())
    }
}

fn read(note: &Path) -> Option<Digest> {
    fs::read_to_string(note).ok()?.lines().next()?.parse().ok()
}

/// Whether the index of a note is removed with it.
fn is_ours(note: &Path) -> bool {
    let text = fs::read_to_string(note).unwrap_or_default();
    !text.is_empty() && text.lines().nth(1) != Some(STORED)
}

fn remove_note(note: &Path) {
    if let Err(error) = fs::remove_file(note)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(error = %error, "cannot remove the note of a SOCI index");
    }
}
