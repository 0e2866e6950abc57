//! An image in containerd's content store, to be indexed.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{self, Read};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use soci_containerd::{Content, ImageRecord, Namespace};
use soci_index::{ImageSource, IndexError, Root, StreamReader};
use soci_oci::{Descriptor, Digest};
use soci_store::content::OciLayout;

/// zTOCs that were made before, by layer and span size.
pub(crate) type KnownZtocs = BTreeMap<(Digest, u64), Descriptor>;

/// Reads an image from containerd; zTOCs made before may also be in an OCI layout.
pub(crate) struct ContainerdSource {
    content: Content,
    image: ImageRecord,
    known: KnownZtocs,
    layout: Option<OciLayout>,
}

impl ContainerdSource {
    pub(crate) fn new(
        containerd: &Namespace,
        image: ImageRecord,
        known: KnownZtocs,
        layout: Option<OciLayout>,
    ) -> Self {
        Self {
            content: Content::new(containerd),
            image,
            known,
            layout,
        }
    }

    fn failed(&self, error: impl Into<Box<dyn Error + Send + Sync>>) -> IndexError {
        IndexError::Store {
            place: self.describe(),
            source: error.into(),
        }
    }

    /// The bytes of a blob that is there, over containerd's API.
    async fn whole(
        &self,
        descriptor: &Descriptor,
    ) -> Result<BoxStream<'static, io::Result<Bytes>>, IndexError> {
        let stream = self.content.stream(&descriptor.digest, 0, 0).await;
        stream.map_err(|error| self.failed(error))
    }

    /// The blob must be there in its full size.
    async fn check(&self, descriptor: &Descriptor) -> Result<(), IndexError> {
        let info = self.content.info(&descriptor.digest).await;
        match info.map_err(|error| self.failed(error))? {
            Some(info) if info.size == descriptor.size => Ok(()),
            Some(info) => Err(IndexError::Size {
                digest: descriptor.digest,
                place: self.describe(),
                expected: descriptor.size,
                found: info.size,
            }),
            None => Err(self.failed(format!(
                "{} is not in containerd's content store: the image was pulled in part or lazily; pull \
                 the whole of it with another snapshotter, or index it at its registry (docker://…)",
                descriptor.digest
            ))),
        }
    }
}

#[async_trait]
impl ImageSource for ContainerdSource {
    fn describe(&self) -> String {
        format!("image {}", self.image.name)
    }

    async fn root(&self) -> Result<Root, IndexError> {
        Ok(Root::Descriptor(self.image.target.clone()))
    }

    async fn contains(&self, descriptor: &Descriptor) -> Result<bool, IndexError> {
        let info = self.content.info(&descriptor.digest).await;
        Ok(info.map_err(|error| self.failed(error))?.is_some())
    }

    async fn bytes(&self, descriptor: &Descriptor) -> Result<Bytes, IndexError> {
        if let Some(layout) = &self.layout
            && layout.contains(&descriptor.digest)
        {
            return layout
                .get(&descriptor.digest)
                .map_err(|error| self.failed(error));
        }
        self.check(descriptor).await?;
        let bytes = self.content.bytes(descriptor).await;
        bytes.map_err(|error| self.failed(error))
    }

    async fn open(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send>, IndexError> {
        self.check(descriptor).await?;
        let (digest, size) = (&descriptor.digest, descriptor.size);
        if let Some(file) = self.content.file(digest, size).await {
            return Ok(Box::new(file));
        }
        let stream = self.whole(descriptor).await?;
        Ok(Box::new(StreamReader::new(stream)))
    }

    async fn stream(
        &self,
        descriptor: &Descriptor,
    ) -> Result<BoxStream<'static, io::Result<Bytes>>, IndexError> {
        self.check(descriptor).await?;
        self.whole(descriptor).await
    }

    fn holds_parts(&self) -> bool {
        true
    }

    fn known_ztoc(&self, layer: Digest, span_size: u64) -> Option<Descriptor> {
        self.known.get(&(layer, span_size)).cloned()
    }
}
