//! An OCI image layout folder (OCI image spec, `image-layout.md`): blobs by digest, and an
//! `index.json` that names what is complete.

use std::io::Read;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use oci::{Descriptor, Digest, Index};

use crate::StoreError;

/// An OCI image layout folder. Clones share nothing but the path and may be used from many threads.
#[derive(Debug, Clone)]
pub struct OciLayout {}

/// What [`OciLayout::put`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOutcome {
    /// The blob was written.
    Written,
    /// It was here already.
    Exists,
}

/// A blob that is being written; dropped before [`BlobWriter::commit`], it leaves nothing.
#[derive(Debug)]
pub struct BlobWriter {}

impl std::io::Write for BlobWriter {
    fn write(&mut self, _data: &[u8]) -> std::io::Result<usize> {
        todo!()
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl BlobWriter {
    /// Takes in the next bytes.
    ///
    /// # Errors
    /// More bytes than the descriptor says, or the file system refused.
    pub fn append(&mut self, _data: &[u8]) -> Result<(), StoreError> {
        todo!()
    }
    /// Ends the blob: digest and size are checked, the file is made durable and takes its name.
    ///
    /// # Errors
    /// [`StoreError::SizeMismatch`], [`StoreError::DigestMismatch`], or the file system refused.
    pub fn commit(self) -> Result<Descriptor, StoreError> {
        todo!()
    }
}

impl OciLayout {
    /// Opens a layout; the folder, `oci-layout` and `blobs/sha256` are created if need be.
    ///
    /// # Errors
    /// The file system refused, or `oci-layout` names another version.
    pub fn open(_dir: &Path) -> Result<Self, StoreError> {
        todo!()
    }
    /// Opens a layout that must be there, and writes nothing.
    ///
    /// # Errors
    /// There is none, or it has another version.
    pub fn open_existing(_dir: &Path) -> Result<Self, StoreError> {
        todo!()
    }
    /// The folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        todo!()
    }
    /// Stores a blob that is in memory.
    ///
    /// # Errors
    /// The bytes are not those that the descriptor names, or the file system refused.
    pub fn put(&self, _descriptor: &Descriptor, _bytes: &[u8]) -> Result<PutOutcome, StoreError> {
        todo!()
    }
    /// Stores a blob from a reader.
    ///
    /// # Errors
    /// As [`OciLayout::put`], and what the reader reports.
    pub fn put_reader(
        &self,
        _descriptor: &Descriptor,
        _reader: impl Read,
    ) -> Result<PutOutcome, StoreError> {
        todo!()
    }
    /// Starts to write a blob of known digest and size piece by piece.
    ///
    /// # Errors
    /// The file system refused.
    pub fn writer(&self, _descriptor: &Descriptor) -> Result<BlobWriter, StoreError> {
        todo!()
    }
    /// Starts to write a blob whose digest and size will be known at its end.
    ///
    /// # Errors
    /// The file system refused.
    pub fn new_blob(&self, _media_type: &str) -> Result<BlobWriter, StoreError> {
        todo!()
    }
    /// A whole blob, for small metadata. A damaged one is removed and reported.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::DigestMismatch`], or the file system refused.
    pub fn get(&self, _digest: &Digest) -> Result<Bytes, StoreError> {
        todo!()
    }
    /// Where the blob is or would be.
    #[must_use]
    pub fn path(&self, _digest: &Digest) -> PathBuf {
        todo!()
    }
    /// Is the blob here? Its content is not checked.
    #[must_use]
    pub fn contains(&self, _digest: &Digest) -> bool {
        todo!()
    }
    /// The blob's size in bytes, if it is here.
    #[must_use]
    pub fn size(&self, _digest: &Digest) -> Option<u64> {
        todo!()
    }
    /// Removes a blob; answers whether it was here.
    ///
    /// # Errors
    /// The file system refused.
    pub fn delete(&self, _digest: &Digest) -> Result<bool, StoreError> {
        todo!()
    }
    /// The digests of all blobs, ascending.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn list(&self) -> Result<Vec<Digest>, StoreError> {
        todo!()
    }
    /// `index.json`; empty if there is none yet.
    ///
    /// # Errors
    /// It cannot be read or is no image index.
    pub fn index(&self) -> Result<Index, StoreError> {
        todo!()
    }
    /// Replaces `index.json`.
    ///
    /// # Errors
    /// The file system refused.
    pub fn set_index(&self, _index: &Index) -> Result<(), StoreError> {
        todo!()
    }
    /// What a tag (annotation `org.opencontainers.image.ref.name`) points at.
    ///
    /// # Errors
    /// As [`OciLayout::index`].
    pub fn tag(&self, _tag: &str) -> Result<Option<Descriptor>, StoreError> {
        todo!()
    }
    /// Points a tag at something, instead of what it pointed at before.
    ///
    /// # Errors
    /// As [`OciLayout::index`] and [`OciLayout::set_index`].
    pub fn set_tag(&self, _tag: &str, _descriptor: &Descriptor) -> Result<(), StoreError> {
        todo!()
    }
}
