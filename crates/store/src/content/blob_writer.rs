//! Writing one blob of an OCI layout, of any size, a piece at a time.

use std::path::{Path, PathBuf};

use soci_oci::{Descriptor, Digest, Hasher};

use crate::StoreError;
use crate::atomic_file::AtomicFile;

/// A blob that is being written; dropped before [`BlobWriter::commit`], it leaves nothing.
#[derive(Debug)]
pub(super) struct BlobWriter {
    file: AtomicFile,
    blobs: PathBuf,
    hasher: Hasher,
    written: u64,
    digest: Digest,
    size: u64,
}

impl BlobWriter {
    pub(super) fn new(blobs: &Path, descriptor: &Descriptor) -> Result<Self, StoreError> {
        Ok(Self {
            file: AtomicFile::create(blobs)?,
            blobs: blobs.to_path_buf(),
            hasher: Hasher::new(),
            written: 0,
            digest: descriptor.digest,
            size: descriptor.size,
        })
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// More bytes than the descriptor says, or the file system refused.
    pub(super) fn append(&mut self, data: &[u8]) -> Result<(), StoreError> {
        let written = self.written.saturating_add(data.len() as u64);
        if written > self.size {
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
    pub(super) fn commit(mut self) -> Result<(), StoreError> {
        if self.written != self.size {
            return Err(self.wrong_size(self.written));
        }
        let actual: Digest = std::mem::take(&mut self.hasher).finish();
        let expected = self.digest;
        if actual != expected {
            let what = format!("blob {expected}");
            return Err(StoreError::DigestMismatch {
                what,
                expected,
                actual,
            });
        }
        self.file.finish(&self.blobs.join(actual.hex()))
    }

    fn wrong_size(&self, actual: u64) -> StoreError {
        StoreError::SizeMismatch {
            what: format!("blob {}", self.digest),
            expected: self.size,
            actual,
        }
    }
}
