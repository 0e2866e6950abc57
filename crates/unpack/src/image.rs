//! What an image's manifest and configuration say about its layers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use soci_containerd::{Containerd, Content, within};
use soci_oci::{Descriptor, Digest, ImageConfig, Manifest, Reference};
use soci_registry::Client;

use crate::UnpackError;

/// Manifests and configurations are small; the registry client has the same limit for manifests.
const MOST: u64 = 8 << 20;
/// Longest time that containerd may take; after that the registry is asked.
const PATIENCE: Duration = Duration::from_secs(5);
/// Images remembered at most. Forgetting one costs a look-up, nothing else.
const MAX_IMAGES: usize = 64;

/// One layer of one image.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LayerOfImage {
    /// containerd's namespace of the client that asked.
    pub namespace: String,
    /// The image, as the client gave it.
    pub reference: Reference,
    /// The image's manifest.
    pub manifest: Digest,
    /// The compressed layer.
    pub layer: Digest,
}

/// A layer as manifest and configuration describe it.
#[derive(Debug, Clone)]
pub struct LayerDescription {
    /// The compressed layer.
    pub descriptor: Descriptor,
    /// The digest of the uncompressed layer.
    pub diff_id: Digest,
}

/// Looks images up, in containerd first.
pub struct ImageLayers {
    pub(crate) client: Client,
    /// Address of containerd.
    containerd: Option<String>,
    known: Mutex<HashMap<Digest, Arc<Vec<LayerDescription>>>>,
}

impl ImageLayers {
    /// Looks in the content store of the containerd at this address, if there is one, and then asks the
    /// registry.
    #[must_use]
    pub fn new(client: Client, containerd: Option<String>) -> Self {
        Self {
            client,
            containerd,
            known: Mutex::default(),
        }
    }

    /// What there is to know of a layer.
    pub(crate) async fn describe(
        &self,
        layer: &LayerOfImage,
    ) -> Result<LayerDescription, UnpackError> {
        let layers = self.of(layer).await?;
        let found = layers
            .iter()
            .find(|described| described.descriptor.digest == layer.layer);
        found.cloned().ok_or_else(|| UnpackError::Image {
            manifest: layer.manifest,
            reason: format!("it does not list layer {}", layer.layer),
        })
    }

    /// The layers of an image, lowest first.
    ///
    /// # Errors
    /// Manifest or configuration cannot be fetched, or do not belong to each other.
    pub async fn of(
        &self,
        image: &LayerOfImage,
    ) -> Result<Arc<Vec<LayerDescription>>, UnpackError> {
        let known = self.known.lock().get(&image.manifest).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let layers = Arc::new(self.layers(image).await?);
        let mut known = self.known.lock();
        if known.len() >= MAX_IMAGES {
            known.clear();
        }
        known.insert(image.manifest, Arc::clone(&layers));
        Ok(layers)
    }

    async fn layers(&self, image: &LayerOfImage) -> Result<Vec<LayerDescription>, UnpackError> {
        let wrong = |reason: String| UnpackError::Image {
            manifest: image.manifest,
            reason,
        };
        let bytes = self.manifest(image).await?;
        let manifest: Manifest = serde_json::from_slice(&bytes)
            .map_err(|error| wrong(format!("it cannot be read: {error}")))?;
        let bytes = self.config(image, &manifest.config).await?;
        let config: ImageConfig = serde_json::from_slice(&bytes)
            .map_err(|error| wrong(format!("its configuration cannot be read: {error}")))?;
        let diff_ids = config.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() {
            return Err(wrong(format!(
                "it lists {} layers, its configuration {}",
                manifest.layers.len(),
                diff_ids.len()
            )));
        }
        let layers = manifest.layers.into_iter().zip(diff_ids);
        Ok(layers
            .map(|(descriptor, diff_id)| LayerDescription {
                descriptor,
                diff_id,
            })
            .collect())
    }

    async fn manifest(&self, image: &LayerOfImage) -> Result<Bytes, UnpackError> {
        if let Some(bytes) = self.local(image, image.manifest).await {
            return Ok(bytes);
        }
        let manifest = Box::pin(self.client.manifest(&image.reference, image.manifest)).await;
        let (_, bytes) = manifest.map_err(|source| UnpackError::Registry {
            what: "cannot fetch the image manifest",
            source,
        })?;
        Ok(bytes)
    }

    async fn config(
        &self,
        image: &LayerOfImage,
        config: &Descriptor,
    ) -> Result<Bytes, UnpackError> {
        if let Some(bytes) = self.local(image, config.digest).await {
            return Ok(bytes);
        }
        if config.size > MOST {
            return Err(UnpackError::Image {
                manifest: image.manifest,
                reason: format!("its configuration has more than {MOST} bytes"),
            });
        }
        let bytes = Box::pin(self.client.blob_bytes(&image.reference, config)).await;
        let bytes = bytes.map_err(|source| UnpackError::Registry {
            what: "cannot fetch the image configuration",
            source,
        })?;
        Ok(bytes)
    }

    async fn local(&self, image: &LayerOfImage, digest: Digest) -> Option<Bytes> {
        let address = self.containerd.as_deref()?;
        let read = async {
            let containerd = Containerd::connect(address).await?;
            let content = Content::new(&containerd.namespace(&image.namespace)?);
            content.get(&digest, MOST).await
        };
        let found = within(PATIENCE, Box::pin(read)).await;
        found.unwrap_or_else(|error| {
            tracing::debug!(%digest, %error, "cannot read a blob from containerd, falling back to the registry");
            None
        })
    }
}
