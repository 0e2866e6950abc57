//! An image at a registry whose zTOCs are at the registry as well: they are made once for both
//! versions of indexes.

use std::io::{self, Read};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use soci_index::{ImageSource, IndexError, Root, SharedSource};
use soci_oci::{Descriptor, Digest, Reference};
use soci_ztoc::soci_index::ZtocDescriptor;

pub(super) struct WithZtocs {
    image: SharedSource,
    ztocs: Vec<ZtocDescriptor>,
}

impl WithZtocs {
    pub(super) fn new(image: SharedSource, ztocs: Vec<ZtocDescriptor>) -> Self {
        Self { image, ztocs }
    }
}

#[async_trait]
impl ImageSource for WithZtocs {
    fn describe(&self) -> String {
        self.image.describe()
    }

    async fn root(&self) -> Result<Root, IndexError> {
        self.image.root().await
    }

    async fn contains(&self, descriptor: &Descriptor) -> Result<bool, IndexError> {
        self.image.contains(descriptor).await
    }

    async fn manifest(&self, descriptor: &Descriptor) -> Result<Bytes, IndexError> {
        self.image.manifest(descriptor).await
    }

    async fn bytes(&self, descriptor: &Descriptor) -> Result<Bytes, IndexError> {
        self.image.bytes(descriptor).await
    }

    async fn open(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send>, IndexError> {
        self.image.open(descriptor).await
    }

    async fn stream(
        &self,
        descriptor: &Descriptor,
    ) -> Result<BoxStream<'static, io::Result<Bytes>>, IndexError> {
        self.image.stream(descriptor).await
    }

    fn repository(&self) -> Option<&Reference> {
        self.image.repository()
    }

    fn known_ztoc(&self, layer: Digest, span_size: u64) -> Option<Descriptor> {
        let mut ztocs = self.ztocs.iter();
        let known =
            ztocs.find(|ztoc| ztoc.layer_digest == layer && ztoc.span_size == Some(span_size))?;
        Some(known.descriptor.clone())
    }
}
