//! Where manifests are read from.

use async_trait::async_trait;
use bytes::Bytes;
use soci_oci::{Descriptor, Digest, Reference};
use soci_registry::{Client, RegistryError};

/// Reads what a look-up needs of one repository.
#[async_trait]
pub trait ManifestSource: Send + Sync {
    /// Reads the manifest of the image.
    ///
    /// # Errors
    /// The registry does not have it, or failed.
    async fn manifest(&self, digest: Digest) -> Result<Bytes, RegistryError>;

    /// Reads a SOCI index.
    ///
    /// # Errors
    /// The registry does not have it, or failed.
    async fn index(&self, digest: Digest) -> Result<Bytes, RegistryError> {
        self.manifest(digest).await
    }

    /// Lists the referrers of a manifest that have this artifact type.
    ///
    /// # Errors
    /// The registry failed; that it knows of no referrers is an empty list.
    async fn referrers(
        &self,
        subject: Digest,
        artifact_type: &str,
    ) -> Result<Vec<Descriptor>, RegistryError>;
}

/// The manifests of one repository of a registry.
#[derive(Debug, Clone)]
pub struct RegistryManifests {
    client: Client,
    reference: Reference,
}

impl RegistryManifests {
    /// Creates the source for the repository of `reference`; makes no request.
    #[must_use]
    pub const fn new(client: Client, reference: Reference) -> Self {
        Self { client, reference }
    }
}

#[async_trait]
impl ManifestSource for RegistryManifests {
    async fn manifest(&self, digest: Digest) -> Result<Bytes, RegistryError> {
        let (_, bytes) = self.client.manifest(&self.reference, digest).await?;
        Ok(bytes)
    }

    async fn referrers(
        &self,
        subject: Digest,
        artifact_type: &str,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let referrers = &self.client;
        referrers
            .referrers(&self.reference, subject, Some(artifact_type))
            .await
    }
}
