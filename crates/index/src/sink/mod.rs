//! Where a converted image is written to: an OCI layout directory, an OCI layout tar, a registry.
//!
//! Nothing is visible at the destination before [`ImageSink::finish`]: local ones are written
//! beside it and renamed, a registry gets the tag last.

mod archive;
mod dir;
mod registry;

use std::io::Write;

use async_trait::async_trait;
use bytes::Bytes;
use soci_oci::{Descriptor, Index, media_types};

pub use self::archive::ArchiveSink;
pub use self::dir::DirSink;
pub use self::registry::RegistrySink;

use crate::IndexError;
use crate::source::SharedSource;
use crate::transfer::{TransferMeter, copy_into};

/// The fixed content of a layout's `oci-layout` file (OCI image spec, `image-layout.md`).
pub(crate) const OCI_LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// A blob on its way to the destination. Dropped without [`commit`](Self::commit) it never was.
pub trait BlobWriter: Write + Send {
    /// Ends the blob; its size and digest have been checked by the caller.
    ///
    /// # Errors
    /// When the last bytes cannot be written.
    fn commit(self: Box<Self>) -> Result<(), IndexError>;
}

/// Takes the blobs of one image.
#[async_trait]
pub trait ImageSink: Send + Sync {
    /// The destination's name for messages, without secrets.
    fn describe(&self) -> String;

    /// Announces the large blobs that will come, once and in a fixed order, so that the result does not
    /// depend on which of them is ready first.
    ///
    /// # Errors
    /// When there is no room for them.
    fn plan(&self, blobs: &[Descriptor]) -> Result<(), IndexError> {
        let _ = blobs;
        Ok(())
    }

    /// A writer for a blob that is being read anyway. `None`: the sink wants
    /// [`copy`](Self::copy) instead, or no such blob at all.
    ///
    /// # Errors
    /// When the blob cannot be begun.
    fn tee(&self, blob: &Descriptor) -> Result<Option<Box<dyn BlobWriter>>, IndexError> {
        let _ = blob;
        Ok(None)
    }

    /// Brings a blob over from the source, size and digest checked.
    ///
    /// # Errors
    /// When the source has it not or damaged, or the destination refuses it.
    async fn copy(
        &self,
        blob: &Descriptor,
        source: &SharedSource,
        meter: &TransferMeter,
    ) -> Result<(), IndexError> {
        match self.tee(blob)? {
            Some(writer) => copy_into(writer, blob, source, meter).await,
            None => Ok(()),
        }
    }

    /// Whether the destination may hold a part of an image only, so that an entry without content can stay
    /// listed.
    fn holds_parts(&self) -> bool {
        false
    }

    /// Writes a small blob.
    ///
    /// # Errors
    /// When the destination refuses it.
    async fn put_blob(&self, blob: &Descriptor, bytes: Bytes) -> Result<(), IndexError>;

    /// Writes a manifest whose blobs are there.
    ///
    /// # Errors
    /// When the destination refuses it.
    async fn put_manifest(&self, manifest: &Descriptor, bytes: Bytes) -> Result<(), IndexError> {
        self.put_blob(manifest, bytes).await
    }

    /// Writes the image's index and makes the image visible.
    ///
    /// # Errors
    /// When the destination refuses it; then nothing is visible.
    async fn finish(self: Box<Self>, index: &Descriptor, bytes: Bytes) -> Result<(), IndexError>;
}

/// The `index.json` of a layout with one image.
pub(crate) fn index_json(image: &Descriptor) -> Result<Vec<u8>, IndexError> {
    let index = Index {
        schema_version: 2,
        media_type: media_types::OCI_INDEX.to_owned(),
        artifact_type: None,
        manifests: vec![image.clone()],
        subject: None,
        annotations: std::collections::BTreeMap::new(),
    };
    soci_oci::json::to_vec(&index).map_err(|e| IndexError::Options(e.to_string()))
}
