//! Finding the SOCI index of an image: the client's word, the manifest's annotation (v2), the
//! registry's referrers (v1), in this order, each only where configuration allows it.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use soci_layer::LayerRefusal;
use soci_oci::{Digest, Manifest, annotations, media_types};
use soci_registry::Client;
use soci_telemetry::Meters;
use soci_telemetry::metrics::duration_ms;
use soci_ztoc::soci_index::SociIndex;
use tokio::task::spawn_blocking;

use crate::Artifacts;
use crate::kept::{KeptIndexes, Origin};
use crate::labels::ImageKey;

/// A larger index is refused, wherever it comes from.
const SIZE_LIMIT: u64 = 4 << 20;

/// A SOCI index and its digest.
#[derive(Debug)]
pub(crate) struct FoundIndex {
    pub(crate) digest: Digest,
    pub(crate) index: SociIndex,
}

/// Looks for indexes.
pub(crate) struct Discovery {
    pub(crate) client: Client,
    pub(crate) artifacts: Artifacts,
    pub(crate) kept: KeptIndexes,
    pub(crate) meters: Arc<Meters>,
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
        let start = Instant::now();
        let digest = self.locate(image).await?;
        let stored = self.artifacts.get(&image.namespace, &digest, SIZE_LIMIT);
        if let Some(bytes) = stored.await
            && let Ok(index) = SociIndex::parse(&bytes)
        {
            self.keep(image, digest, bytes, Origin::Stored).await;
            return Ok(FoundIndex { digest, index });
        }
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
                LayerRefusal::not_indexed(format!("index {digest} cannot be fetched: {e}"))
            })?;
        // The label is the index's, as in v0.15.
        let label = digest.to_string();
        self.meters
            .took(duration_ms::SOCI_INDEX_FETCH, &label, start.elapsed());
        let index = SociIndex::parse(&bytes)
            .map_err(|e| LayerRefusal::not_indexed(format!("index {digest}: {e}")))?;
        soci_faults::point("lazy-index-fetched");
        let keeping = self
            .artifacts
            .keep_index(&image.namespace, digest, &index, &bytes);
        keeping.await;
        self.keep(image, digest, bytes, Origin::Fetched).await;
        Ok(FoundIndex { digest, index })
    }

    /// Makes the next start find the index without registry and content store.
    async fn keep(&self, image: &ImageKey, digest: Digest, bytes: Bytes, origin: Origin) {
        let (kept, key) = (self.kept.clone(), image.clone());
        // It has logged its failure, which only costs a look-up after the next start.
        let _ = spawn_blocking(move || kept.save(&key, digest, &bytes, origin)).await;
    }

    /// The digest of the index that belongs to an image.
    async fn locate(&self, image: &ImageKey) -> Result<Digest, LayerRefusal> {
        if let Some(explicit) = image.explicit_index {
            return Ok(explicit);
        }
        if !self.soci_v1 && !self.soci_v2 {
            return Err(LayerRefusal::not_indexed(
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
        Err(LayerRefusal::not_indexed(looked.join("; ")))
    }

    /// The v2 annotation of the image manifest.
    async fn annotated(&self, image: &ImageKey) -> Result<Option<Digest>, LayerRefusal> {
        let (_, bytes) = self
            .client
            .manifest(&image.reference, image.manifest)
            .await
            .map_err(|e| {
                LayerRefusal::not_indexed(format!("the image manifest cannot be fetched: {e}"))
            })?;
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|e| {
            LayerRefusal::not_indexed(format!("image manifest {}: {e}", image.manifest))
        })?;
        match manifest.annotations.get(annotations::INDEX_DIGEST) {
            None => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|e| {
                LayerRefusal::not_indexed(format!(
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
                LayerRefusal::not_indexed(format!("the referrers cannot be listed: {e}"))
            })?;
        Ok(referrers.first().map(|referrer| referrer.digest))
    }
}
