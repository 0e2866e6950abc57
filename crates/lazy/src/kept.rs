//! Indexes that were found, kept on disk while their image is in use: the index in the content
//! store, and its digest in a note named after the image.
//!
//! Everything here may be lost without harm: then the registry is asked again.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use soci_oci::{Descriptor, Digest, media_types};
use soci_store::content::OciLayout;
use soci_ztoc::soci_index::SociIndex;

use crate::discovery::FoundIndex;
use crate::labels::ImageKey;

/// What the second line of a note says of an index that is not ours to remove.
const STORED: &str = "stored";

/// Where an index came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// From the registry: it is kept as long as its image is in use.
    Fetched,
    /// It was in the content store before, made here by `soci create` for example.
    Stored,
}

/// The indexes that are kept. Everything it does waits for the disk. Clones are the same.
#[derive(Clone)]
pub(crate) struct KeptIndexes {
    content: OciLayout,
    notes: PathBuf,
}

impl KeptIndexes {
    /// `notes` is a folder of our own; it is created when needed.
    pub(crate) fn new(content: OciLayout, notes: PathBuf) -> Self {
        Self { content, notes }
    }

    /// The index kept for an image. What cannot be read counts as not kept.
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

    /// Keeps an index. A full disk costs a look-up at the next restart, so it is only logged.
    pub(crate) fn save(&self, image: &ImageKey, digest: Digest, bytes: &[u8], origin: Origin) {
        // What containerd has is not ours, but our copy of it is.
        let note = if origin == Origin::Stored && self.content.contains(&digest) {
            format!("{digest}\n{STORED}\n")
        } else {
            digest.to_string()
        };
        let descriptor = Descriptor::new(media_types::OCI_MANIFEST, digest, bytes.len() as u64);
        // The note first: a crash leaves no index that no note leads to.
        let kept = write_whole(&self.note(image), note.as_bytes())
            .map_err(|e| format!("{}: {e}", self.notes.display()))
            .inspect(|()| soci_faults::point("lazy-index-noted"))
            .and_then(|()| match self.content.put(&descriptor, bytes) {
                Ok(_) => Ok(()),
                Err(e) => Err(e.to_string()),
            });
        if let Err(error) = kept {
            tracing::warn!(digest = %digest, error, "the SOCI index is not kept on disk");
        }
    }

    /// Lets go of an index that no layer uses any more.
    pub(crate) fn forget(&self, image: &ImageKey, digest: &Digest) {
        self.remove(&self.note(image), digest);
    }

    /// Removes what was kept for images other than these: a crash may have left it behind.
    pub(crate) fn sweep(&self, in_use: &HashSet<ImageKey>) {
        let in_use: HashSet<PathBuf> = in_use.iter().map(|image| self.note(image)).collect();
        let indexes: HashSet<Digest> = in_use.iter().filter_map(|note| read(note)).collect();
        // There is no such folder before the first image.
        for entry in fs::read_dir(&self.notes).into_iter().flatten().flatten() {
            let note = entry.path();
            if in_use.contains(&note) {
                continue;
            }
            match read(&note) {
                Some(digest) if !indexes.contains(&digest) => self.remove(&note, &digest),
                _ => remove_note(&note),
            }
        }
    }

    /// Removes an index and the note that led to it, in this order.
    fn remove(&self, note: &Path, digest: &Digest) {
        let text = fs::read_to_string(note).unwrap_or_default();
        let ours = !text.is_empty() && text.lines().nth(1) != Some(STORED);
        if ours && let Err(error) = self.content.delete(digest) {
            tracing::warn!(digest = %digest, error = %error, "a SOCI index is not removed");
        }
        soci_faults::point("lazy-index-removed");
        remove_note(note);
    }

    /// Named after repository and manifest: who may write to one repository must not decide which
    /// index (v1: anything that refers to the manifest) is used for another's image.
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

fn remove_note(note: &Path) {
    if let Err(error) = fs::remove_file(note)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(error = %error, "the note of a SOCI index is not removed");
    }
}

/// Writes a small file so that it is either whole or not there, also after a power cut.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}
