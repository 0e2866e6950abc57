//! The client.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use oci::{Descriptor, Digest, Reference};

use crate::source::ByteStream;
use crate::{ClientConfig, Credentials, RegistryError, RemoteBlob};

/// What a manifest is asked for by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManifestKey {
    /// A tag.
    Tag(String),
    /// A digest, which the answer must match.
    Digest(Digest),
}

impl From<Digest> for ManifestKey {
    fn from(digest: Digest) -> Self {
        Self::Digest(digest)
    }
}

impl From<&str> for ManifestKey {
    fn from(tag: &str) -> Self {
        Self::Tag(tag.to_owned())
    }
}

impl fmt::Display for ManifestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => write!(f, "{digest}"),
        }
    }
}

/// The registry client; clones share connections, tokens and what was learnt about hosts.
#[derive(Clone, Debug)]
pub struct Client {}

#[expect(clippy::unused_async, reason = "skeleton")]
impl Client {
    /// A client; no request is made yet.
    ///
    /// # Errors
    /// The configuration makes no sense.
    pub fn new(
        _config: ClientConfig,
        _credentials: Arc<dyn Credentials>,
    ) -> Result<Self, RegistryError> {
        todo!()
    }

    /// The descriptor of what a reference names.
    ///
    /// # Errors
    /// It does not exist, or the registry does not give it.
    pub async fn resolve(&self, _reference: &Reference) -> Result<Descriptor, RegistryError> {
        todo!()
    }

    /// A manifest and its bytes, verified when asked for by digest.
    ///
    /// # Errors
    /// It does not exist, is too large, or is not what its digest says.
    pub async fn manifest(
        &self,
        _reference: &Reference,
        _key: impl Into<ManifestKey> + Send,
    ) -> Result<(Descriptor, Bytes), RegistryError> {
        todo!()
    }

    /// A whole blob, verified; large ones come in parallel ranges. The caller judges
    /// `descriptor.size` before.
    ///
    /// # Errors
    /// It does not exist or is not what its digest says.
    pub async fn blob_bytes(
        &self,
        _reference: &Reference,
        _descriptor: &Descriptor,
    ) -> Result<Bytes, RegistryError> {
        todo!()
    }

    /// A blob to read in parts; no request is made yet.
    #[must_use]
    pub fn blob(&self, _reference: &Reference, _descriptor: &Descriptor) -> RemoteBlob {
        todo!()
    }

    /// A whole blob in order; the last item is an error if the digest is wrong.
    ///
    /// # Errors
    /// It does not exist or the registry does not give it.
    pub async fn blob_stream(
        &self,
        _reference: &Reference,
        _descriptor: &Descriptor,
    ) -> Result<ByteStream, RegistryError> {
        todo!()
    }

    /// What refers to `subject`, from the referrers API or else the referrers tag.
    ///
    /// # Errors
    /// The registry does not answer either.
    pub async fn referrers(
        &self,
        _reference: &Reference,
        _subject: Digest,
        _artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        todo!()
    }

    /// Does the repository have this blob?
    ///
    /// # Errors
    /// The registry does not say.
    pub async fn blob_exists(
        &self,
        _reference: &Reference,
        _descriptor: &Descriptor,
    ) -> Result<bool, RegistryError> {
        todo!()
    }

    /// Does the repository have the manifest that the reference names?
    ///
    /// # Errors
    /// The registry does not say.
    pub async fn manifest_exists(&self, _reference: &Reference) -> Result<bool, RegistryError> {
        todo!()
    }
}
