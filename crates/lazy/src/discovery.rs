//! Finding the SOCI index of an image: the client's word, the manifest's annotation (v2), the
//! registry's referrers (v1), in this order, each only where configuration allows it.

use oci::{Digest, Manifest, annotations, media_types};
use registry::Client;
use snapshotter::LayerRefusal;
use tokio::task::spawn_blocking;
use ztoc::soci_index::SociIndex;

use crate::kept::KeptIndexes;
use crate::labels::ImageKey;

/// A SOCI index and its digest.
#[derive(Debug)]
pub(crate) struct FoundIndex {
    pub(crate) digest: Digest,
    pub(crate) index: SociIndex,
}

/// Looks for indexes.
pub(crate) struct Discovery {
    pub(crate) client: Client,
    pub(crate) kept: KeptIndexes,
    pub(crate) soci_v1: bool,
    pub(crate) soci_v2: bool,
}

impl Discovery {
    /// The index of an image. One that was found before is taken from disk, so that a restart needs
    /// no registry.
    pub(crate) async fn find(&self, image: &ImageKey) -> Result<FoundIndex, LayerRefusal> {
        let (kept, key) = (self.kept.clone(), image.clone());
        // Should the look on the disk break off, the registry is asked.
        if let Ok(Some(found)) = spawn_blocking(move || kept.load(&key)).await {
            return Ok(found);
        }
        let digest = self.locate(image).await?;
        tracing::info!(
            digest = %digest,
            image = %image.reference,
            "fetching SOCI artifacts using index descriptor"
        );
        let (_, bytes) = self
            .client
            .manifest(&image.reference, digest)
            .await
            .map_err(|e| {
                LayerRefusal::no_index(format_args!("index {digest} cannot be fetched: {e}"))
            })?;
        let index = SociIndex::parse(&bytes)
            .map_err(|e| LayerRefusal::no_index(format_args!("index {digest}: {e}")))?;
        faults::point("lazy-index-fetched");
        let (kept, key) = (self.kept.clone(), image.clone());
        // It has logged its failure, which only costs a look-up after the next start.
        let _ = spawn_blocking(move || kept.save(&key, digest, &bytes)).await;
        Ok(FoundIndex { digest, index })
    }

    /// The digest of the index that belongs to an image.
    async fn locate(&self, image: &ImageKey) -> Result<Digest, LayerRefusal> {
        if let Some(explicit) = image.explicit_index {
            return Ok(explicit);
        }
        if !self.soci_v1 && !self.soci_v2 {
            return Err(LayerRefusal::no_index(
                "both [pull_modes.soci_v1] and [pull_modes.soci_v2] are disabled",
            ));
        }
        let mut looked = Vec::with_capacity(2);
        if self.soci_v2 {
            match self.annotated(image).await? {
                Some(digest) => return Ok(digest),
                None => looked.push(format!(
                    "the image manifest has no annotation {}",
                    annotations::INDEX_DIGEST
                )),
            }
        }
        if self.soci_v1 {
            match self.referring(image).await? {
                Some(digest) => return Ok(digest),
                None => looked.push("no SOCI index v1 refers to the image manifest".to_owned()),
            }
        } else {
            looked.push("[pull_modes.soci_v1] is disabled".to_owned());
        }
        Err(LayerRefusal::no_index(looked.join("; ")))
    }

    /// The v2 annotation of the image manifest.
    async fn annotated(&self, image: &ImageKey) -> Result<Option<Digest>, LayerRefusal> {
        let (_, bytes) = self
            .client
            .manifest(&image.reference, image.manifest)
            .await
            .map_err(|e| {
                LayerRefusal::no_index(format_args!("the image manifest cannot be fetched: {e}"))
            })?;
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|e| {
            LayerRefusal::no_index(format_args!("image manifest {}: {e}", image.manifest))
        })?;
        match manifest.annotations.get(annotations::INDEX_DIGEST) {
            None => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|e| {
                LayerRefusal::no_index(format_args!(
                    "annotation {} of the image manifest: {e}",
                    annotations::INDEX_DIGEST
                ))
            }),
        }
    }

    /// The first v1 index among the referrers of the image manifest.
    async fn referring(&self, image: &ImageKey) -> Result<Option<Digest>, LayerRefusal> {
        let referrers = self
            .client
            .referrers(
                &image.reference,
                image.manifest,
                Some(media_types::SOCI_INDEX_V1),
            )
            .await
            .map_err(|e| {
                LayerRefusal::no_index(format_args!("the referrers cannot be listed: {e}"))
            })?;
        Ok(referrers.first().map(|referrer| referrer.digest))
    }
}
