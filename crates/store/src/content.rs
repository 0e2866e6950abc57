//! The blobs of an OCI image layout folder (OCI image spec, `image-layout.md`).

mod blob_writer;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use bytes::Bytes;
use soci_oci::{Descriptor, Digest};

use crate::StoreError;
use crate::atomic_file::{UNFINISHED, write_file};
use crate::private;

use blob_writer::BlobWriter;

/// How much of a reader is held at once.
const CHUNK: usize = 256 << 10;
/// An unfinished blob without a write for this long was left by a process that died.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);
const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// An OCI image layout folder. Clones are the same folder; all may be used from many threads.
#[derive(Debug, Clone)]
pub struct OciLayout {
    dir: PathBuf,
}

/// The result of [`OciLayout::put`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOutcome {
    /// The blob was written.
    Written,
    /// It was stored already.
    Exists,
}

impl OciLayout {
    /// Opens a layout; the folder, `oci-layout` and `blobs/sha256` are created if need be.
    ///
    /// # Errors
    /// The file system refused, or `oci-layout` names another version.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                let path = dir.to_path_buf();
                StoreError::NotWritable { path, source }
            }
            _ => StoreError::io("create", &blobs, source),
        })?;
        if !dir.join("oci-layout").exists() {
            write_file(&dir.join("oci-layout"), LAYOUT)?;
        }
        clear_abandoned(&blobs);
        Self::open_existing(dir)
    }

    /// Opens a layout as [`OciLayout::open`] does, in a folder that only its owner may read.
    ///
    /// # Errors
    /// As there.
    pub fn open_private(dir: &Path) -> Result<Self, StoreError> {
        let layout = Self::open(dir)?;
        private::restrict(dir, private::FOLDER)
            .map_err(|source| StoreError::io("set the mode of", dir, source))?;
        Ok(layout)
    }

    /// Opens a layout that must be there, and writes nothing.
    ///
    /// # Errors
    /// There is none, or it has another version.
    pub fn open_existing(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join("oci-layout");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let reason =
                    "the file is missing, so its folder is not an OCI image layout".to_owned();
                return Err(StoreError::Layout { path, reason });
            }
            Err(error) => return Err(StoreError::io("read", &path, error)),
        };
        let layout: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        match layout
            .get("imageLayoutVersion")
            .and_then(serde_json::Value::as_str)
        {
            Some("1.0.0") => Ok(Self {
                dir: dir.to_path_buf(),
            }),
            version => {
                let reason = match version {
                    Some(version) => {
                        format!("version {version:?} is not supported, only \"1.0.0\"")
                    }
                    None => "it names no imageLayoutVersion".to_owned(),
                };
                Err(StoreError::Layout { path, reason })
            }
        }
    }

    /// Returns the folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Stores a blob that is in memory.
    ///
    /// # Errors
    /// The bytes are not those that the descriptor names, or the file system refused.
    pub fn put(&self, descriptor: &Descriptor, bytes: &[u8]) -> Result<PutOutcome, StoreError> {
        self.put_reader(descriptor, bytes)
    }

    /// Stores a blob from a reader, of which it reads nothing if the blob is stored.
    ///
    /// # Errors
    /// As [`OciLayout::put`], and what the reader reports.
    pub fn put_reader(
        &self,
        descriptor: &Descriptor,
        mut reader: impl Read,
    ) -> Result<PutOutcome, StoreError> {
        if self.size(&descriptor.digest) == Some(descriptor.size) {
            return Ok(PutOutcome::Exists);
        }
        let mut writer = self.writer(descriptor)?;
        let wanted = usize::try_from(descriptor.size).unwrap_or(usize::MAX);
        let mut chunk = vec![0; wanted.saturating_add(1).min(CHUNK)];
        loop {
            match reader.read(&mut chunk) {
                Ok(0) => break,
                Ok(len) => writer.append(chunk.get(..len).unwrap_or_default())?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(StoreError::io(
                        "read what is to become",
                        self.path(&descriptor.digest),
                        error,
                    ));
                }
            }
        }
        writer.commit()?;
        Ok(PutOutcome::Written)
    }

    /// Starts to write a blob piece by piece.
    fn writer(&self, descriptor: &Descriptor) -> Result<BlobWriter, StoreError> {
        BlobWriter::new(&self.blobs(), descriptor)
    }

    /// Reads a whole blob; for small metadata. A damaged one is removed and reported, never served.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::DigestMismatch`], or the file system refused.
    pub fn get(&self, digest: &Digest) -> Result<Bytes, StoreError> {
        let path = self.path(digest);
        let blob = match fs::read(&path) {
            Ok(blob) => blob,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let what = format!("blob {digest}");
                return Err(StoreError::NotFound {
                    what,
                    path: self.dir.clone(),
                });
            }
            Err(error) => return Err(StoreError::io("read", &path, error)),
        };
        let actual = Digest::of(&blob);
        if actual != *digest {
            self.delete(digest)?;
            let what = format!("blob {}, which is removed", path.display());
            let expected = *digest;
            return Err(StoreError::DigestMismatch {
                what,
                expected,
                actual,
            });
        }
        Ok(blob.into())
    }

    fn blobs(&self) -> PathBuf {
        self.dir.join("blobs/sha256")
    }

    /// Returns the path of a blob, stored or not.
    #[must_use]
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    /// Returns whether the blob is stored. Its content is not checked.
    #[must_use]
    pub fn contains(&self, digest: &Digest) -> bool {
        self.size(digest).is_some()
    }

    /// Returns the blob's size in bytes, if it is stored.
    #[must_use]
    pub fn size(&self, digest: &Digest) -> Option<u64> {
        let metadata = fs::metadata(self.path(digest)).ok()?;
        metadata.is_file().then_some(metadata.len())
    }

    /// Removes a blob; returns whether it was stored.
    ///
    /// # Errors
    /// The file system refused.
    pub fn delete(&self, digest: &Digest) -> Result<bool, StoreError> {
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(StoreError::io("remove", &path, error)),
        }
    }

    /// Lists the digests of all blobs, ascending.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn list(&self) -> Result<Vec<Digest>, StoreError> {
        let blobs = self.blobs();
        let failed = |e| StoreError::io("list", &blobs, e);
        let mut digests = Vec::new();
        for entry in fs::read_dir(&blobs).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            digests.extend(
                name.to_str()
                    .and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok()),
            );
        }
        digests.sort_unstable();
        Ok(digests)
    }
}

/// Removes blobs that a process started to write and never finished.
fn clear_abandoned(blobs: &Path) {
    for entry in fs::read_dir(blobs).into_iter().flatten().flatten() {
        let unfinished = entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(UNFINISHED.as_bytes());
        let age = entry
            .metadata()
            .and_then(|m| m.modified())
            .ok()
            .and_then(|at| at.elapsed().ok());
        if unfinished && age.is_some_and(|age| age > ABANDONED) {
            // It takes space, nothing else.
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests;
