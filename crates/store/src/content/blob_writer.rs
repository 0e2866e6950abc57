//! Writing one blob of an OCI layout, of any size, a piece at a time.

use std::io;
use std::path::{Path, PathBuf};

use soci_oci::{Descriptor, Digest, Hasher};

use crate::StoreError;
use crate::atomic_file::AtomicFile;

/// A blob that is being written; dropped before [`BlobWriter::commit`], it leaves nothing.
#[derive(Debug)]
pub struct BlobWriter {
    file: AtomicFile,
    blobs: PathBuf,
    hasher: Hasher,
    written: u64,
    descriptor: Descriptor,
    /// The descriptor says what must come; else it is filled in at the end.
    known: bool,
}

impl BlobWriter {
    pub(super) fn new(
        blobs: &Path,
        descriptor: Descriptor,
        known: bool,
    ) -> Result<Self, StoreError> {
        Ok(Self {
            file: AtomicFile::create(blobs)?,
            blobs: blobs.to_path_buf(),
            hasher: Hasher::new(),
            written: 0,
            descriptor,
            known,
        })
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// More bytes than the descriptor says, or the file system refused.
    pub fn append(&mut self, data: &[u8]) -> Result<(), StoreError> {
        let written = self.written.saturating_add(data.len() as u64);
        if self.known && written > self.descriptor.size {
            return Err(self.wrong_size(written));
        }
        self.file.write(data)?;
        self.hasher.update(data);
        self.written = written;
        Ok(())
    }

    /// Ends the blob: size and digest are checked, the file is made durable and takes its name.
    ///
    /// # Errors
    /// [`StoreError::SizeMismatch`], [`StoreError::DigestMismatch`], or the file system refused.
    pub fn commit(mut self) -> Result<Descriptor, StoreError> {
        if self.known && self.written != self.descriptor.size {
            return Err(self.wrong_size(self.written));
        }
        let actual: Digest = std::mem::take(&mut self.hasher).finish();
        let expected = self.descriptor.digest;
        if self.known && actual != expected {
            let what = format!("blob {expected}");
            return Err(StoreError::DigestMismatch {
                what,
                expected,
                actual,
            });
        }
        let descriptor = Descriptor {
            digest: actual,
            size: self.written,
            ..self.descriptor
        };
        self.file.finish(&self.blobs.join(actual.hex()))?;
        Ok(descriptor)
    }

    fn wrong_size(&self, actual: u64) -> StoreError {
        StoreError::SizeMismatch {
            what: format!("blob {}", self.descriptor.digest),
            expected: self.descriptor.size,
            actual,
        }
    }
}

impl io::Write for BlobWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.append(data).map_err(io::Error::other)?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
