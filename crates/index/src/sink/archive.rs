//! A tar of an OCI layout (`oci-archive`) as destination.
//!
//! The sizes of all large blobs are known beforehand, so each gets its place in the tar first and
//! the blobs are then written in parallel. The bytes of the archive depend on the image alone.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use soci_oci::{Descriptor, Digest};
use tempfile::NamedTempFile;

use super::dir::beside;
use super::{BlobWriter, ImageSink, OCI_LAYOUT, index_json};
use crate::IndexError;

/// Bytes of a tar block.
const BLOCK: u64 = 512;

/// Writes a tar of an OCI layout: in a hidden file beside the destination, renamed at the end.
#[derive(Debug)]
pub struct ArchiveSink {
    destination: PathBuf,
    temporary: NamedTempFile,
    file: Arc<File>,
    places: Mutex<Places>,
}

/// Which part of the tar is taken.
#[derive(Debug, Default)]
struct Places {
    end: u64,
    blobs: BTreeMap<Digest, u64>,
}

impl ArchiveSink {
    /// Prepares to write `destination`; a regular file there is replaced at the end.
    ///
    /// # Errors
    /// When it exists and is not a regular file, or its parent cannot be written.
    pub fn create(destination: &Path) -> Result<Self, IndexError> {
        match fs::metadata(destination) {
            Ok(found) if found.is_dir() => {
                return Err(IndexError::Destination {
                    path: destination.to_owned(),
                    reason: "it is a directory (--format oci-dir writes into an empty one)",
                });
            }
            Ok(found) if !found.is_file() => {
                return Err(IndexError::Destination {
                    path: destination.to_owned(),
                    reason: "it exists and is not a regular file",
                });
            }
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(IndexError::io("read", destination)(e)),
        }
        let (parent, prefix) = beside(destination)?;
        let temporary = tempfile::Builder::new()
            .prefix(&prefix)
            .permissions(fs::Permissions::from_mode(0o666))
            .tempfile_in(&parent)
            .map_err(IndexError::io("create a file in", &parent))?;
        let file = temporary
            .as_file()
            .try_clone()
            .map_err(IndexError::io("open", destination))?;
        let sink = Self {
            destination: destination.to_owned(),
            temporary,
            file: Arc::new(file),
            places: Mutex::default(),
        };
        sink.entry("oci-layout", OCI_LAYOUT)?;
        sink.header("blobs/", 0)?;
        sink.header("blobs/sha256/", 0)?;
        Ok(sink)
    }

    /// Takes the next place in the tar and writes the header; returns the offset of the content.
    fn header(&self, name: &str, size: u64) -> Result<u64, IndexError> {
        let failed = |e: io::Error| IndexError::io("write", &self.destination)(e);
        let mut header = tar::Header::new_gnu();
        header.set_path(name).map_err(failed)?;
        let (kind, mode) = if name.ends_with('/') {
            (tar::EntryType::Directory, 0o755)
        } else {
            (tar::EntryType::Regular, 0o644)
        };
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        header.set_cksum();
        let mut places = self.places.lock();
        let at = places.end;
        let content = at.saturating_add(BLOCK);
        places.end = size
            .checked_next_multiple_of(BLOCK)
            .and_then(|padded| content.checked_add(padded))
            .ok_or_else(|| failed(io::ErrorKind::FileTooLarge.into()))?;
        self.file
            .write_all_at(header.as_bytes(), at)
            .map_err(failed)?;
        Ok(content)
    }

    fn entry(&self, name: &str, content: &[u8]) -> Result<(), IndexError> {
        let at = self.header(name, content.len() as u64)?;
        self.file
            .write_all_at(content, at)
            .map_err(IndexError::io("write", &self.destination))
    }

    fn known(&self, digest: Digest) -> Option<u64> {
        self.places.lock().blobs.get(&digest).copied()
    }

    /// The place of a blob; taken now if it was not planned.
    fn place(&self, blob: &Descriptor) -> Result<u64, IndexError> {
        if let Some(at) = self.known(blob.digest) {
            return Ok(at);
        }
        let at = self.header(&format!("blobs/sha256/{}", blob.digest.hex()), blob.size)?;
        self.places.lock().blobs.insert(blob.digest, at);
        Ok(at)
    }

    fn begin(&self, blob: &Descriptor) -> Result<ArchiveBlob, IndexError> {
        let at = self.place(blob)?;
        Ok(ArchiveBlob {
            file: Arc::clone(&self.file),
            at,
            end: at.saturating_add(blob.size),
        })
    }
}

/// Writes into one blob's place and never beyond it.
struct ArchiveBlob {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Write for ArchiveBlob {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let next = self.at.saturating_add(buf.len() as u64);
        if next > self.end {
            return Err(io::Error::other(
                "the blob is longer than its descriptor says",
            ));
        }
        self.file.write_all_at(buf, self.at)?;
        self.at = next;
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl BlobWriter for ArchiveBlob {
    fn commit(self: Box<Self>) -> Result<(), IndexError> {
        Ok(())
    }
}

#[async_trait]
impl ImageSink for ArchiveSink {
    fn describe(&self) -> String {
        self.destination.display().to_string()
    }

    fn plan(&self, blobs: &[Descriptor]) -> Result<(), IndexError> {
        blobs.iter().try_for_each(|blob| self.place(blob).map(drop))
    }

    fn tee(&self, blob: &Descriptor) -> Result<Option<Box<dyn BlobWriter>>, IndexError> {
        Ok(Some(Box::new(self.begin(blob)?)))
    }

    async fn put_blob(&self, blob: &Descriptor, bytes: Bytes) -> Result<(), IndexError> {
        let mut writer = self.begin(blob)?;
        writer
            .write_all(&bytes)
            .map_err(IndexError::io("write", &self.destination))
    }

    async fn finish(self: Box<Self>, index: &Descriptor, bytes: Bytes) -> Result<(), IndexError> {
        self.put_blob(index, bytes).await?;
        self.entry("index.json", &index_json(index)?)?;
        let end = self.places.lock().end;
        // Two zero blocks end a tar; what was skipped as padding reads as zeros too.
        self.file
            .set_len(end.saturating_add(2 * BLOCK))
            .map_err(IndexError::io("write", &self.destination))?;
        self.temporary.persist(&self.destination).map_err(|e| {
            IndexError::io("rename the finished archive to", &self.destination)(e.error)
        })?;
        Ok(())
    }
}
