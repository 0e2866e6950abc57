//! An image at a registry.

use std::io::{self, Read};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use soci_oci::{Descriptor, Reference};
use soci_registry::Client;

use super::{ImageSource, Root, StreamReader, check_document_size, verify};
use crate::IndexError;

/// Reads an image from a registry.
#[derive(Debug)]
pub struct RegistrySource {
    client: Client,
    reference: Reference,
}

impl RegistrySource {
    /// The image that `reference` names; no request is made yet.
    #[must_use]
    pub fn new(client: Client, reference: Reference) -> Self {
        Self { client, reference }
    }
}

#[async_trait]
impl ImageSource for RegistrySource {
    fn describe(&self) -> String {
        self.reference.to_string()
    }

    async fn root(&self) -> Result<Root, IndexError> {
        Ok(Root::Descriptor(
            self.client.resolve(&self.reference).await?,
        ))
    }

    async fn contains(&self, _: &Descriptor) -> Result<bool, IndexError> {
        Ok(true)
    }

    async fn manifest(&self, descriptor: &Descriptor) -> Result<Bytes, IndexError> {
        check_document_size(descriptor, &self.describe())?;
        let (_, bytes) = self
            .client
            .manifest(&self.reference, descriptor.digest)
            .await?;
        verify(bytes, descriptor, &self.describe())
    }

    async fn bytes(&self, descriptor: &Descriptor) -> Result<Bytes, IndexError> {
        let bytes = self.client.blob_bytes(&self.reference, descriptor).await?;
        verify(bytes, descriptor, &self.describe())
    }

    async fn open(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send>, IndexError> {
        Ok(Box::new(StreamReader::new(self.stream(descriptor).await?)))
    }

    async fn stream(
        &self,
        descriptor: &Descriptor,
    ) -> Result<BoxStream<'static, io::Result<Bytes>>, IndexError> {
        let stream = self.client.blob_stream(&self.reference, descriptor).await?;
        Ok(stream.map_err(io::Error::other).boxed())
    }

    fn repository(&self) -> Option<&Reference> {
        Some(&self.reference)
    }
}
