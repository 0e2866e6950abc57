//! `soci rebuild-db`: the artifact database from what the content stores hold.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use soci_containerd::Content;
use soci_oci::{Descriptor, Digest, ImageConfig, Index, Manifest, Platform};
use soci_store::artifacts::{Artifact, IndexedImage};
use soci_ztoc::soci_index::SociIndex;

use crate::artifact_records::with_db;
use crate::artifact_store::{ArtifactStore, Stored};
use crate::global::Global;
use crate::interrupt::committing;
use crate::output;

/// No manifest is larger in bytes, no SOCI index smaller.
const MANIFEST: std::ops::RangeInclusive<u64> = 64..=4 << 20;

/// Rebuild the artifact database from the content stores
///
/// Of use after an image with a SOCI index was pulled, to find the index and its zTOCs, and after
/// `soci index remove`, to forget zTOCs that containerd has collected.
#[derive(Debug, Args)]
pub(crate) struct RebuildDb {
    /// Print nothing
    #[arg(short, long)]
    quiet: bool,
}

/// What the manifests of images tell.
#[derive(Default)]
struct Images {
    manifests: BTreeMap<Digest, Manifest>,
    /// Image indexes that list a manifest.
    listed_by: BTreeMap<Digest, Digest>,
    /// The platform that an image index says.
    platforms: BTreeMap<Digest, Platform>,
    /// The image manifest that names a SOCI index of version 2.
    by_index: BTreeMap<Digest, Digest>,
}

impl RebuildDb {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let containerd = global.connect().await?;
        let images_in = ArtifactStore::Containerd(Content::new(&containerd));
        let (mut images, mut indexes) = (Images::default(), Vec::new());
        for blob in images_in.list().await? {
            let Some(bytes) = document(&images_in, &blob).await else {
                continue;
            };
            match SociIndex::parse(&bytes) {
                Ok(index) => indexes.push((blob, index)),
                Err(_) => images.take(blob.digest, &bytes),
            }
        }
        let store = global.artifact_store().await?;
        if let ArtifactStore::Layout(..) = store {
            indexes.clear();
            for blob in store.list().await? {
                if let Some(bytes) = document(&store, &blob).await
                    && let Ok(index) = SociIndex::parse(&bytes)
                {
                    indexes.push((blob, index));
                }
            }
        }
        let present: BTreeSet<Digest> = store
            .list()
            .await?
            .into_iter()
            .map(|blob| blob.digest)
            .collect();
        // By digest: two indexes may list the same zTOC.
        let mut found = BTreeMap::new();
        for (blob, index) in indexes {
            let Some(of) = images.of_index(&images_in, &blob, &index).await else {
                tracing::debug!(index = %blob.digest, "it is not known of which image this is");
                continue;
            };
            let artifacts = Artifact::of_index(blob.digest, blob.size, &index, &of);
            found.extend(
                artifacts
                    .into_iter()
                    .filter(|part| present.contains(&part.digest))
                    .map(|part| (part.digest, part)),
            );
        }
        let found: Vec<Artifact> = found.into_values().collect();
        committing();
        let changed = with_db(&global.artifacts(), move |db| db.rebuild(&found)).await?;
        if !self.quiet {
            output::line(format!(
                "artifact database rebuilt: {} added, {} removed",
                changed.added, changed.removed
            ));
        }
        Ok(())
    }
}

/// Reads what may be a manifest. A blob that vanishes in between counts as missing.
async fn document(store: &ArtifactStore, blob: &Stored) -> Option<bytes::Bytes> {
    if !MANIFEST.contains(&blob.size) {
        return None;
    }
    let bytes = store.bytes(&blob.digest).await.ok()?;
    (bytes.first() == Some(&b'{')).then_some(bytes)
}

impl Images {
    fn take(&mut self, digest: Digest, bytes: &[u8]) {
        if let Ok(index) = serde_json::from_slice::<Index>(bytes)
            && !index.manifests.is_empty()
        {
            for manifest in index.manifests {
                self.listed_by.insert(manifest.digest, digest);
                if let Some(platform) = manifest.platform {
                    self.platforms.insert(manifest.digest, platform);
                }
            }
        } else if let Ok(manifest) = serde_json::from_slice::<Manifest>(bytes) {
            if let Some(Ok(index)) = manifest.soci_index() {
                self.by_index.insert(index, digest);
            }
            self.manifests.insert(digest, manifest);
        }
    }

    /// The image that an index was made of.
    async fn of_index(
        &self,
        store: &ArtifactStore,
        blob: &Stored,
        index: &SociIndex,
    ) -> Option<IndexedImage> {
        let manifest = match &index.subject {
            Some(subject) => subject.digest,
            None => *self.by_index.get(&blob.digest)?,
        };
        Some(IndexedImage {
            manifest,
            image: *self.listed_by.get(&manifest).unwrap_or(&manifest),
            platform: self.platform(store, &manifest).await,
            created_at: blob.created_at,
        })
    }

    /// The platform of an image, or nothing if it is not known.
    async fn platform(&self, store: &ArtifactStore, manifest: &Digest) -> String {
        if let Some(platform) = self.platforms.get(manifest) {
            let Platform {
                os,
                architecture,
                variant,
                ..
            } = platform;
            return Platform::new(os, architecture, variant.as_deref()).to_string();
        }
        let config = |config: &Descriptor| config.digest;
        let Some(config) = self.manifests.get(manifest).map(|m| config(&m.config)) else {
            return String::new();
        };
        let read = store.bytes(&config).await.ok();
        let config: Option<ImageConfig> = read.and_then(|b| serde_json::from_slice(&b).ok());
        config.map_or_else(String::new, |config| {
            Platform::new(&config.os, &config.architecture, config.variant.as_deref()).to_string()
        })
    }
}
