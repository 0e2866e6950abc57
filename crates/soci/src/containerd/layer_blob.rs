//! A layer in containerd's content store, read in ranges.

use anyhow::Context as _;
use futures::StreamExt as _;
use soci_containerd::Content;
use soci_oci::Digest;

/// A layer in containerd's content store.
pub(crate) struct LayerBlob {
    content: Content,
    digest: Digest,
    size: u64,
}

impl LayerBlob {
    /// Looks up the layer, which must be stored.
    pub(crate) async fn open(content: Content, digest: Digest) -> anyhow::Result<Self> {
        let info = content.info(&digest).await?.with_context(|| {
            format!(
                "layer {digest} is not in containerd's content store: pull the image with another \
                 snapshotter than soci, or read it at its registry with `soci cat`"
            )
        })?;
        Ok(Self {
            content,
            digest,
            size: info.size,
        })
    }
}

#[async_trait::async_trait]
impl soci_registry::BlobSource for LayerBlob {
    fn size(&self) -> u64 {
        self.size
    }

    async fn stream_range(
        &self,
        range: std::ops::Range<u64>,
        _: soci_registry::Deadline,
    ) -> Result<soci_registry::ByteStream, soci_registry::RegistryError> {
        let length = range.end.saturating_sub(range.start);
        let bytes = self.content.range(&self.digest, range.start, length).await;
        let bytes = bytes.map_err(|error| soci_registry::RegistryError::Source {
            what: self.describe(),
            source: std::sync::Arc::new(error),
        })?;
        Ok(futures::stream::once(async { Ok(bytes) }).boxed())
    }

    fn describe(&self) -> String {
        format!("{} of containerd", self.digest)
    }
}
