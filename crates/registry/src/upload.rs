//! Uploading blobs and manifests.

use bytes::Bytes;
use oci::{Descriptor, Digest, Reference};

use crate::{BlobBody, Client, RegistryError};

/// How a blob came to be at the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PushOutcome {
    /// It was transferred.
    Uploaded,
    /// It was there already.
    Exists,
    /// The registry took it from another of its repositories.
    Mounted,
}

impl Client {
    /// Uploads a blob unless the registry has it.
    ///
    /// # Errors
    /// The registry refused it, cannot be reached, or the body cannot be read.
    pub async fn push_blob(
        &self,
        _reference: &Reference,
        _descriptor: &Descriptor,
        _body: BlobBody,
        _mount_from: Option<&str>,
        _progress: Option<&(dyn Fn(u64) + Send + Sync)>,
    ) -> Result<PushOutcome, RegistryError> {
        todo!()
    }

    /// Uploads a manifest under the reference's digest or else its tag.
    ///
    /// # Errors
    /// The registry refused it or cannot be reached.
    pub async fn push_manifest(
        &self,
        _reference: &Reference,
        _media_type: &str,
        _bytes: Bytes,
    ) -> Result<Digest, RegistryError> {
        todo!()
    }
}
