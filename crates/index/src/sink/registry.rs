//! A registry as destination. The tag comes last.

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use soci_oci::{Descriptor, Reference};
use soci_registry::{BlobBody, Client};

use super::ImageSink;
use crate::IndexError;
use crate::source::SharedSource;
use crate::transfer::TransferMeter;

/// Writes an image to a registry under a tag.
#[derive(Debug)]
pub struct RegistrySink {
    client: Client,
    reference: Reference,
}

impl RegistrySink {
    /// Prepares to push `reference`.
    ///
    /// # Errors
    /// When the reference has no tag, or has a digest.
    pub fn create(client: Client, reference: Reference) -> Result<Self, IndexError> {
        if reference.tag().is_none() || reference.digest().is_some() {
            return Err(IndexError::Reference {
                text: reference.to_string(),
                reason: "the destination must be a tagged reference of the form \
                         registry/repository:tag, without a digest"
                    .to_owned(),
            });
        }
        Ok(Self { client, reference })
    }

    /// Prepares to push artifacts that have digests only, beside the image at `reference`.
    #[must_use]
    pub fn beside(client: Client, reference: Reference) -> Self {
        Self { client, reference }
    }
}

#[async_trait]
impl ImageSink for RegistrySink {
    fn describe(&self) -> String {
        self.reference.to_string()
    }

    async fn copy(
        &self,
        blob: &Descriptor,
        source: &SharedSource,
        meter: &TransferMeter,
    ) -> Result<(), IndexError> {
        let mount_from = source
            .repository()
            .filter(|from| from.registry() == self.reference.registry())
            .map(|from| from.repository().to_owned());
        let body = {
            let (source, blob, cancel) = (source.clone(), blob.clone(), meter.cancel());
            BlobBody::stream(move || {
                let (source, blob, cancel) = (source.clone(), blob.clone(), cancel.clone());
                futures::stream::once(async move {
                    source.stream(&blob).await.map_err(std::io::Error::other)
                })
                .try_flatten()
                .and_then(move |chunk| futures::future::ready(cancel.check().map(|()| chunk)))
                .boxed()
            })
        };
        let seen = |bytes: u64| meter.add(bytes);
        self.client
            .push_blob(
                &self.reference,
                blob,
                body,
                mount_from.as_deref(),
                Some(&seen),
            )
            .await?;
        Ok(())
    }

    async fn put_blob(&self, blob: &Descriptor, bytes: Bytes) -> Result<(), IndexError> {
        self.client
            .push_blob(&self.reference, blob, bytes.into(), None, None)
            .await?;
        Ok(())
    }

    async fn put_manifest(&self, manifest: &Descriptor, bytes: Bytes) -> Result<(), IndexError> {
        let reference = self.reference.at(manifest.digest);
        self.client
            .push_manifest(&reference, &manifest.media_type, bytes)
            .await?;
        Ok(())
    }

    async fn finish(self: Box<Self>, index: &Descriptor, bytes: Bytes) -> Result<(), IndexError> {
        self.client
            .push_manifest(&self.reference, &index.media_type, bytes)
            .await?;
        Ok(())
    }
}
