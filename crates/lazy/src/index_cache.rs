//! The SOCI indexes of images: in memory, on disk, in the content store, at the registry.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use soci_discovery::{ImageQuery, MAX_INDEX_SIZE, ManifestSource, Policy, RegistryManifests};
use soci_layer::{Cause, LayerRefusal};
use soci_oci::{Descriptor, Digest};
use soci_registry::{Client, RegistryError};
use soci_telemetry::Meters;
use soci_telemetry::metrics::duration_ms;
use soci_ztoc::soci_index::SociIndex;
use tokio::time::Instant;

use crate::Artifacts;
use crate::image_layer::ImageKey;
use crate::image_store::ImageStore;
use crate::index_files::{FoundIndex, IndexFiles, Origin};
use crate::index_uses::{IndexUse, IndexUses};
use crate::lookup_cache::LookupCache;
use crate::outages::Outages;

/// Time for which the layers of an image that are restored together share a failed look-up.
const RETRY_RESTORE: Duration = Duration::from_secs(2);

/// Time after which an index that the disk refused is written again the first time, …
const SAVE_AGAIN: Duration = Duration::from_secs(1);
/// … and the longest: each attempt that fails doubles it.
const SAVE_AGAIN_AT_MOST: Duration = Duration::from_secs(300);

/// Finds indexes, and keeps those of images in use.
pub(crate) struct IndexCache {
    pub(crate) client: Client,
    pub(crate) artifacts: Artifacts,
    pub(crate) images: Arc<ImageStore>,
    pub(crate) outages: Arc<Outages>,
    pub(crate) files: IndexFiles,
    pub(crate) lookups: LookupCache<FoundIndex>,
    pub(crate) uses: Arc<IndexUses>,
    pub(crate) meters: Arc<Meters>,
    pub(crate) policy: Policy,
    /// Time after which a look-up fails.
    pub(crate) time_limit: Duration,
}

impl IndexCache {
    /// Returns the index of an image whose layer is prepared. It stays stored during the use.
    pub(crate) async fn find(
        &self,
        namespace: &str,
        image: &ImageKey,
    ) -> Result<(Arc<FoundIndex>, IndexUse), LayerRefusal> {
        self.find_stored(namespace, image, None).await
    }

    /// Returns the index of an image that was mounted before: the look-up succeeded once, so a
    /// failure is retried soon.
    pub(crate) async fn find_again(
        &self,
        namespace: &str,
        image: &ImageKey,
    ) -> Result<(Arc<FoundIndex>, IndexUse), LayerRefusal> {
        self.find_stored(namespace, image, Some(RETRY_RESTORE))
            .await
    }

    async fn find_stored(
        &self,
        namespace: &str,
        image: &ImageKey,
        retry_after: Option<Duration>,
    ) -> Result<(Arc<FoundIndex>, IndexUse), LayerRefusal> {
        // Boxed: a request to a registry is a large future.
        let look_up = || {
            Box::pin(async move {
                let find = self.look_up(namespace, image);
                match retry_after {
                    Some(limit) => self.lookups.get_unless_older(image, limit, find).await,
                    None => self.lookups.get(image, find).await,
                }
            })
        };
        let removals = self.uses.removals();
        let found = look_up().await?;
        let in_use = self.uses.begin(&image.namespace, found.digest).await;
        if self.uses.removals() == removals || self.is_stored(image).await {
            return Ok((found, in_use));
        }
        // It may have been removed with its last user after it was found.
        self.lookups.forget(|known| known.digest == found.digest);
        let found = look_up().await?;
        if found.digest == in_use.index() {
            return Ok((found, in_use));
        }
        let in_use = self.uses.begin(&image.namespace, found.digest).await;
        Ok((found, in_use))
    }

    async fn is_stored(&self, image: &ImageKey) -> bool {
        let (files, key) = (self.files.clone(), image.clone());
        let loaded = soci_task::run(move || files.load(&key).is_some()).await;
        loaded.unwrap_or(false)
    }

    /// Removes an index of which a use has ended, unless it has others: in memory and on disk, and of
    /// all images that it was found for, or one of them would find it in memory and not after the
    /// next restart.
    pub(crate) async fn release(&self, namespace: &str, index: Digest) {
        // Before it is gone from memory and disk: a look-up that then asks containerd comes after
        // this release.
        let _in_containerd = self.uses.lock_in_containerd(namespace, index).await;
        if self.forget(namespace, index).await {
            self.artifacts.release_index(namespace, &index).await;
        }
    }

    /// Removes an index from memory and disk, unless images of other namespaces use it. Returns whether
    /// its namespace does not use it.
    async fn forget(&self, namespace: &str, index: Digest) -> bool {
        let _alone = self.uses.begin_removal(index).await;
        if self.uses.outlives_removal(Some(namespace), index) {
            return false;
        }
        if self.uses.outlives_removal(None, index) {
            return true;
        }
        self.uses.count_removal();
        self.meters.forget_layer(&index.to_string());
        self.lookups.forget(|found| found.digest == index);
        let files = self.files.clone();
        // Failures are logged there.
        let _ = soci_task::run(move || files.forget(&index)).await;
        true
    }

    /// Removes indexes that were kept for layers which could not be mounted.
    pub(crate) async fn release_abandoned(&self) {
        for (namespace, index) in self.uses.abandoned() {
            self.release(&namespace, index).await;
        }
    }

    /// Stores the indexes that the disk refused as soon as it takes them. Returns with the cache.
    pub(crate) async fn store_refused(cache: Weak<Self>) {
        let files = || cache.upgrade().map(|cache| cache.files.clone());
        let Some(refused) = files().map(|files| files.refused()) else {
            return;
        };
        loop {
            refused.notified().await;
            let mut pause = SAVE_AGAIN;
            loop {
                tokio::time::sleep(pause).await;
                let Some(files) = files() else { return };
                let again = soci_task::run(move || files.save_again()).await;
                if !again.unwrap_or(true) {
                    break;
                }
                pause = (pause * 2).min(SAVE_AGAIN_AT_MOST);
            }
        }
    }

    async fn look_up(&self, namespace: &str, image: &ImageKey) -> Result<FoundIndex, LayerRefusal> {
        // One that was found before is read from disk, so that a restart needs no registry, and without a
        // limit, which a busy machine could exceed.
        let (files, key) = (self.files.clone(), image.clone());
        let loaded = soci_task::run(move || files.load(&key)).await;
        if let Ok(Some(found)) = loaded {
            return Ok(found);
        }
        let found = tokio::time::timeout(self.time_limit, self.fetch(namespace, image)).await;
        let found = found.unwrap_or_else(|_| {
            let seconds = self.time_limit.as_secs();
            let cause = format!("no response within mount_timeout_sec = {seconds}");
            Err(LayerRefusal::IndexUnavailable {
                source: Cause::from(Box::<dyn std::error::Error + Send + Sync>::from(cause)),
                unreachable: true,
            })
        });
        if let Err(LayerRefusal::IndexUnavailable {
            source,
            unreachable: true,
        }) = &found
        {
            let outages = &self.outages;
            outages.note(&image.reference, image.manifest, source.clone());
        }
        found
    }

    /// Finds an index in the content store or at the registry, and stores it.
    async fn fetch(&self, namespace: &str, image: &ImageKey) -> Result<FoundIndex, LayerRefusal> {
        let start = Instant::now();
        let manifests = Manifests {
            registry: RegistryManifests::new(self.client.clone(), image.reference.clone()),
            artifacts: &self.artifacts,
            images: &self.images,
            uses: &self.uses,
            namespace,
            image,
            fetched: AtomicBool::new(false),
        };
        let query = ImageQuery {
            digest: image.manifest,
            manifest: None,
            explicit: image.explicit_index,
        };
        let found = soci_discovery::find(&manifests, query, self.policy).await?;
        let (digest, index, bytes) = (found.digest, found.index, found.bytes);
        let mut origin = Origin::Stored;
        if manifests.fetched.into_inner() {
            origin = Origin::Fetched;
            // The label is the digest of the index, as in v0.15.
            let label = digest.to_string();
            self.meters
                .took(duration_ms::SOCI_INDEX_FETCH, &label, start.elapsed());
            soci_faults::point("lazy-index-fetched");
            let namespace = &image.namespace;
            let keep = self.artifacts.keep_index(namespace, digest, &index, &bytes);
            keep.await;
        }
        let (files, key) = (self.files.clone(), image.clone());
        // Failures are logged there.
        let _ = soci_task::run(move || files.save(&key, digest, &bytes, origin)).await;
        let ignored = index.unused_ztocs();
        if ignored > 0 {
            tracing::warn!(index = %digest, ignored, "an index lists layers more than once");
        }
        Ok(FoundIndex { digest, index })
    }
}

/// The manifests of an image: its own comes from containerd if that has it, SOCI indexes come from the content store if it has them.
struct Manifests<'a> {
    registry: RegistryManifests,
    artifacts: &'a Artifacts,
    /// The image store of the client, which has fetched the manifest already.
    images: &'a ImageStore,
    uses: &'a IndexUses,
    namespace: &'a str,
    image: &'a ImageKey,
    /// Whether the index came from the registry.
    fetched: AtomicBool,
}

#[async_trait]
impl ManifestSource for Manifests<'_> {
    async fn manifest(&self, digest: Digest) -> Result<Bytes, RegistryError> {
        if let Ok(Some(stored)) = self.images.manifest(self.namespace, digest).await {
            return Ok(stored);
        }
        self.registry.manifest(digest).await
    }

    async fn index(&self, digest: Digest) -> Result<Bytes, RegistryError> {
        let namespace = &self.image.namespace;
        let in_containerd = self.uses.lock_in_containerd(namespace, digest).await;
        let stored = self.artifacts.get(namespace, &digest, MAX_INDEX_SIZE).await;
        if let Some(bytes) = stored
            && SociIndex::parse(&bytes).is_ok()
        {
            self.artifacts.keep_again(namespace, &digest).await;
            return Ok(bytes);
        }
        drop(in_containerd);
        // An image that was imported with its index.
        if let Ok(Some(bytes)) = self.images.manifest(self.namespace, digest).await
            && SociIndex::parse(&bytes).is_ok()
        {
            return Ok(bytes);
        }
        tracing::info!(
            digest = %digest,
            image = %self.image.reference,
            "fetching SOCI artifacts using index descriptor"
        );
        self.fetched.store(true, Ordering::Relaxed);
        self.registry.index(digest).await
    }

    async fn referrers(
        &self,
        subject: Digest,
        artifact_type: &str,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        self.registry.referrers(subject, artifact_type).await
    }
}

#[cfg(test)]
mod tests {
    use soci_registry::{ChainedCredentials, ClientConfig};
    use soci_store::content::OciLayout;
    use soci_ztoc::soci_index::IndexVersion;

    use super::*;

    struct Cache {
        _root: tempfile::TempDir,
        cache: IndexCache,
        image: ImageKey,
        index: Digest,
    }

    impl Cache {
        /// An image whose index is stored, and whose registry does not answer.
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let layout = OciLayout::open(&root.path().join("content")).unwrap();
            let credentials = Arc::new(ChainedCredentials::new(Vec::new()));
            let cache = IndexCache {
                client: Client::new(ClientConfig::default(), credentials).unwrap(),
                artifacts: Artifacts::Layout(layout.clone()),
                images: Arc::default(),
                outages: Arc::default(),
                files: IndexFiles::new(layout, root.path().join("images")),
                lookups: LookupCache::new(Duration::from_secs(60)),
                uses: Arc::default(),
                meters: Arc::new(Meters::new().unwrap()),
                policy: Policy::ALL,
                time_limit: Duration::ZERO,
            };
            let image = ImageKey {
                reference: "127.0.0.1:1/app:1".parse().unwrap(),
                manifest: Digest::of(b"m"),
                explicit_index: None,
                namespace: String::new(),
            };
            let index = SociIndex::new(IndexVersion::V2, Vec::new(), Vec::new(), None, [].into());
            let bytes = index.encode();
            let index = Digest::of(&bytes);
            cache
                .files
                .save(&image, index, &bytes.into(), Origin::Fetched);
            Self {
                _root: root,
                cache,
                image,
                index,
            }
        }

        async fn find(&self) -> Result<IndexUse, LayerRefusal> {
            let found = self.cache.find("", &self.image).await;
            found.map(|(found, in_use)| {
                assert_eq!(found.digest, self.index);
                in_use
            })
        }

        fn is_stored(&self) -> bool {
            self.cache.files.load(&self.image).is_some()
        }
    }

    #[tokio::test]
    async fn an_index_found_while_the_last_layer_of_its_image_is_removed_stays_stored() {
        let cache = Cache::new();
        let last = cache.find().await.unwrap();
        // The last layer is unmounted, and another Prepare has found the index before it is removed.
        drop(last);
        let prepared = cache.find().await.unwrap();
        cache.cache.release("", cache.index).await;
        assert!(cache.is_stored());
        cache.cache.release_abandoned().await;
        assert!(cache.is_stored());
        // It is removed with the last layer, and if the Prepare failed as well.
        let again = cache.find().await.unwrap();
        drop(prepared);
        cache.cache.release("", cache.index).await;
        assert!(cache.is_stored());
        drop(again);
        cache.cache.release_abandoned().await;
        assert!(!cache.is_stored());
        assert!(cache.cache.uses.abandoned().is_empty());
    }

    /// Finds an index in memory while a removal is in progress, which does this.
    async fn find_while_removing(
        cache: &Cache,
        removal: impl FnOnce(&IndexFiles),
    ) -> Result<IndexUse, LayerRefusal> {
        drop(cache.find().await.unwrap());
        let removing = cache.cache.uses.begin_removal(cache.index).await;
        let mut finding = std::pin::pin!(cache.find());
        assert!(futures::poll!(&mut finding).is_pending());
        cache.cache.uses.count_removal();
        removal(&cache.cache.files);
        drop(removing);
        finding.await
    }

    #[tokio::test]
    async fn a_containerd_that_hangs_while_releasing_an_index_delays_no_image() {
        let mut cache = Cache::new();
        let socket = cache._root.path().join("containerd.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        cache.cache.artifacts = Artifacts::containerd(socket.to_str().unwrap());
        // The same image in another namespace, which stays.
        cache.image.namespace = "stays".to_owned();
        let stays = cache.find().await.unwrap();
        let mut releasing = std::pin::pin!(cache.cache.release("gone", cache.index));
        let asked = tokio::select! {
            biased;
            asked = listener.accept() => asked.unwrap(),
            () = &mut releasing => panic!("containerd was not asked"),
        };
        // The release is not polled while the index is found, so that its time limit does not end it.
        let again = tokio::time::timeout(Duration::from_secs(600), cache.find());
        let again = again.await.expect("it waits for the release").unwrap();
        drop((asked, stays, again));
        // The last use: it is gone from memory and disk before containerd answers.
        let mut releasing_last = std::pin::pin!(cache.cache.release("stays", cache.index));
        tokio::select! {
            biased;
            asked = listener.accept() => drop(asked.unwrap()),
            () = &mut releasing_last => panic!("containerd was not asked"),
        }
        assert!(!cache.is_stored());
    }

    #[tokio::test]
    async fn an_index_removed_while_it_is_found_is_looked_up_again() {
        let cache = Cache::new();
        let found = find_while_removing(&cache, |files| files.forget(&cache.index)).await;
        // Its registry does not answer. What is only in memory would be mounted otherwise.
        assert_eq!(found.err().unwrap().code(), "index-unavailable");
        // The removal of another index, or one after which this was stored again.
        let cache = Cache::new();
        find_while_removing(&cache, |_| {}).await.unwrap();
    }
}
