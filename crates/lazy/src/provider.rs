//! The layer provider: what the snapshotter asks for, put together from the parts.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use fetch::LayerData;
use layerfs::{MountOptions, MountedLayer};
use oci::Digest;
use parking_lot::Mutex;
use snapshotter::{LayerProvider, LayerRefusal, LayerRequest, MountedInfo, ProviderError};
use store::LayerKey;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use ztoc::soci_index::ZtocDescriptor;

use crate::discovery::{Discovery, FoundIndex};
use crate::kept::KeptIndexes;
use crate::labels::{ImageKey, ImageLayer};
use crate::layers::{Layers, Lease};
use crate::opening::{OpenLayer, Opening};
use crate::verdicts::Verdicts;
use crate::ztoc_memory::ZtocMemory;
use crate::{LazyConfig, Parts};

/// For how long a layer that was prepared ahead waits for its Prepare.
const PREPARED_FOR: Duration = Duration::from_secs(300);

/// The layers of an image that are restored together share one failure to find its index.
const RETRY_RESTORE: Duration = Duration::from_secs(2);

/// An unmounted layer that is served for longer than this is in use.
const QUIET_AFTER: Duration = Duration::from_secs(1);

/// All lazy layers of a daemon.
pub struct LazyLayers {
    shared: Arc<Shared>,
}

struct Shared {
    discovery: Discovery,
    verdicts: Verdicts<FoundIndex>,
    opening: Opening,
    layers: Arc<Layers<OpenLayer>>,
    mounts: Mutex<HashMap<PathBuf, Mount>>,
    /// Opened because a layer below them was asked for.
    prepared: Mutex<HashMap<LayerKey, Lease<OpenLayer>>>,
    /// What somebody has asked to mount since the start, successfully or not; `None` once the rest
    /// was swept.
    asked: Mutex<Option<Asked>>,
    /// Unmounting means going away, not that the layers are not needed any more.
    leaving: AtomicBool,
    pool: fuse::Pool,
    config: LazyConfig,
}

struct Mount {
    mounted: MountedLayer,
    lease: Lease<OpenLayer>,
    image: ImageKey,
    index: Digest,
}

/// Layers and images that were asked for.
#[derive(Default)]
struct Asked {
    layers: HashSet<Digest>,
    images: HashSet<ImageKey>,
}

/// Why a layer is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// A client asks for it.
    Prepare,
    /// An earlier process had mounted it.
    Restore,
}

/// A layer that was unmounted.
struct Gone {
    lease: Lease<OpenLayer>,
    image: ImageKey,
    index: Digest,
}

impl LazyLayers {
    /// Puts the parts together. `notes` is a folder of our own for what was found out about images.
    #[must_use]
    pub fn new(parts: Parts, notes: PathBuf) -> Arc<Self> {
        let Parts {
            client,
            layers,
            content,
            fetcher,
            pool,
            config,
        } = parts;
        Arc::new(Self {
            shared: Arc::new(Shared {
                discovery: Discovery {
                    client: client.clone(),
                    kept: KeptIndexes::new(content, notes),
                    soci_v1: config.soci_v1,
                    soci_v2: config.soci_v2,
                },
                verdicts: Verdicts::new(config.retry_after),
                opening: Opening {
                    client,
                    store: layers,
                    fetcher,
                    slots: config.max_concurrency.map(Semaphore::new),
                    memory: ZtocMemory::new(config.ztoc_memory),
                    folders: Arc::default(),
                },
                layers: Arc::default(),
                mounts: Mutex::default(),
                prepared: Mutex::default(),
                asked: Mutex::new(Some(Asked::default())),
                leaving: AtomicBool::new(false),
                pool,
                config,
            }),
        })
    }

    /// From now on unmounting keeps what is stored: the daemon goes away, the snapshots stay.
    pub fn leave(&self) {
        self.shared.leaving.store(true, Ordering::Relaxed);
    }

    /// Makes durable what was fetched. The last thing to do, after the fetcher was shut down.
    pub async fn flush(&self) {
        self.shared.prepared.lock().clear();
        let store = self.shared.opening.store.clone();
        match spawn_blocking(move || store.sync()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "fetched spans may not be kept"),
            Err(error) => tracing::warn!(%error, "fetched spans may not be kept"),
        }
    }

    /// Removes stored layers and indexes that no snapshot has asked for; called once the snapshots of
    /// an earlier run have been mounted again.
    pub async fn sweep(&self) {
        let store = self.shared.opening.store.clone();
        let stored = match spawn_blocking(move || store.layers()).await {
            Ok(Ok(stored)) => stored,
            Ok(Err(error)) => {
                tracing::warn!(error = %error, "stored layers cannot be listed; none is swept");
                return;
            }
            Err(error) => {
                tracing::warn!(error = %error, "stored layers cannot be listed; none is swept");
                return;
            }
        };
        let is_asked_for = |layer: &Digest| {
            let asked = self.shared.asked.lock();
            asked
                .as_ref()
                .is_none_or(|asked| asked.layers.contains(layer))
        };
        for key in stored {
            if !is_asked_for(&key.layer) {
                tracing::info!(layer = %key.layer, "removing a stored layer that no snapshot uses");
                self.shared.remove_unused(key).await;
            }
        }
        let shared = self.shared.clone();
        // It logs its failures.
        let _ = spawn_blocking(move || {
            // Locked to the end: an image that is asked for now must not lose its index half-way.
            let mut asked = shared.asked.lock();
            // From here on they are removed with their last user.
            if let Some(asked) = asked.take() {
                shared.discovery.kept.sweep(&asked.images);
            }
        })
        .await;
    }
}

impl Shared {
    /// The index of an image and the zTOC of one of its layers.
    async fn ztoc_of(
        &self,
        request: &ImageLayer,
        why: Why,
    ) -> Result<(Arc<FoundIndex>, ZtocDescriptor), LayerRefusal> {
        let find = self.discovery.find(&request.image);
        let found = match why {
            Why::Prepare => self.verdicts.get(&request.image, find).await?,
            // The index was there once, so that failing to find it will pass, and a container waits.
            Why::Restore => {
                let shortly = self.config.retry_after.min(RETRY_RESTORE);
                self.verdicts
                    .get_unless_older(&request.image, shortly, find)
                    .await?
            }
        };
        match found.index.ztoc_for(&request.layer) {
            Some(ztoc) => Ok((found.clone(), ztoc.clone())),
            None => Err(LayerRefusal::no_ztoc(format_args!(
                "index {} does not list layer {}",
                found.digest, request.layer
            ))),
        }
    }

    async fn acquire(
        &self,
        image: &ImageKey,
        ztoc: &ZtocDescriptor,
    ) -> Result<Lease<OpenLayer>, LayerRefusal> {
        let key = LayerKey {
            layer: ztoc.layer_digest,
            ztoc: ztoc.descriptor.digest,
        };
        let stays = self.opening.store.is_stored(key);
        // Boxed: a request to a registry is a large future.
        let open = Box::pin(self.opening.open(&image.reference, ztoc));
        let lease = self.layers.acquire(key, open).await;
        match &lease {
            Ok(lease) => lease.layer().sources.add(&image.reference),
            Err(_) if stays => {}
            Err(_) => self.remove_unused(key).await,
        }
        lease
    }

    /// Opens the layers above the one that was asked for: they will be asked for next.
    fn prepare_above(self: &Arc<Self>, request: &ImageLayer, found: &FoundIndex) {
        for ztoc in &found.index.ztocs {
            let key = LayerKey {
                layer: ztoc.layer_digest,
                ztoc: ztoc.descriptor.digest,
            };
            if !request.above.contains(&key.layer) || self.layers.in_use(&key) {
                continue;
            }
            let (shared, image, ztoc) = (self.clone(), request.image.clone(), ztoc.clone());
            tokio::spawn(async move {
                let stays = shared.opening.store.is_stored(key);
                let limit = shared.config.mount_timeout;
                let lease = tokio::time::timeout(limit, shared.acquire(&image, &ztoc)).await;
                // A failure is reported by the Prepare of that layer, which tries again.
                let Ok(Ok(lease)) = lease else {
                    if !stays {
                        shared.remove_unused(key).await;
                    }
                    return;
                };
                shared.prepared.lock().insert(key, lease);
                let waiting = Arc::downgrade(&shared);
                drop(shared);
                tokio::time::sleep(PREPARED_FOR).await;
                if let Some(shared) = waiting.upgrade() {
                    let unclaimed = shared.prepared.lock().remove(&key);
                    if unclaimed.is_some() {
                        drop(unclaimed);
                        shared.remove_unused(key).await;
                    }
                }
            });
        }
    }

    /// A failure leaves nothing on disk that was not there before.
    async fn mount(
        self: &Arc<Self>,
        request: LayerRequest,
        why: Why,
    ) -> Result<MountedInfo, LayerRefusal> {
        let layer = ImageLayer::from_labels(&request.labels)?;
        if let Some(asked) = self.asked.lock().as_mut() {
            asked.layers.insert(layer.layer);
            asked.images.insert(layer.image.clone());
        }
        let minimum = self.config.min_layer_size;
        // A layer that is lazy already stays so, whatever the configuration says now.
        if why == Why::Prepare
            && let Some(size) = layer.size
            && size < minimum
        {
            return Err(LayerRefusal::BelowMinSize { size, minimum });
        }
        // Which layer this mount is the first to store anything of.
        let mut first = None;
        let mounted = async {
            let getting_ready = async {
                let (found, ztoc) = self.ztoc_of(&layer, why).await?;
                if why == Why::Prepare {
                    // They will be asked for next.
                    self.prepare_above(&layer, &found);
                }
                let key = LayerKey {
                    layer: ztoc.layer_digest,
                    ztoc: ztoc.descriptor.digest,
                };
                first = (!self.opening.store.is_stored(key)).then_some(key);
                let lease = self.acquire(&layer.image, &ztoc).await?;
                Ok((found.digest, lease))
            };
            let limit = self.config.mount_timeout;
            let (index, lease) =
                tokio::time::timeout(limit, getting_ready)
                    .await
                    .map_err(|_| {
                        LayerRefusal::failed(format_args!(
                            "index and zTOC were not here within mount_timeout_sec = {}",
                            limit.as_secs()
                        ))
                    })??;
            let (mounted, lease) = self.mount_at(&request.mountpoint, lease).await?;
            Ok((index, mounted, lease))
        };
        let mounted = mounted.await;
        if let (Err(_), Some(key)) = (&mounted, first) {
            self.remove_unused(key).await;
        }
        let (index, mounted, lease) = mounted?;
        faults::point("lazy-layer-mounted");
        let root = lease.layer().tree.root_attr();
        if !self.config.disable_background {
            lease.layer().data.start_background();
        }
        self.prepared.lock().remove(&lease.key());
        self.mounts.lock().insert(
            request.mountpoint,
            Mount {
                mounted,
                lease,
                image: layer.image,
                index,
            },
        );
        Ok(MountedInfo {
            uid: root.uid,
            gid: root.gid,
            mode: root.mode & 0o7777,
        })
    }

    async fn mount_at(
        &self,
        mountpoint: &Path,
        lease: Lease<OpenLayer>,
    ) -> Result<(MountedLayer, Lease<OpenLayer>), LayerRefusal> {
        let (pool, mountpoint) = (self.pool.clone(), mountpoint.to_owned());
        let options = MountOptions {
            attr_timeout: self.config.attr_timeout,
            entry_timeout: self.config.entry_timeout,
            negative_timeout: self.config.negative_timeout,
            ..MountOptions::default()
        };
        spawn_blocking(move || {
            let layer = lease.layer();
            let data: Arc<dyn LayerData> = layer.data.clone();
            let mounted =
                layerfs::mount_layer(&pool, layer.tree.clone(), data, &mountpoint, options);
            mounted.map(|mounted| (mounted, lease))
        })
        .await
        .map_err(LayerRefusal::failed)?
        .map_err(LayerRefusal::failed)
    }

    async fn unmount(self: &Arc<Self>, mountpoint: &Path) -> Result<(), ProviderError> {
        let mount = self.mounts.lock().remove(mountpoint);
        let path = mountpoint.to_owned();
        let failed = |e: &dyn std::fmt::Display| ProviderError::new(mountpoint, e);
        let Some(Mount {
            mounted,
            lease,
            image,
            index,
        }) = mount
        else {
            // Perhaps a process before this one mounted it.
            return spawn_blocking(move || fuse::unmount(&path))
                .await
                .map_err(|e| failed(&e))?
                .map_err(|e| failed(&e));
        };
        let served = mounted.connection().clone();
        let (mounted, unmounted) = spawn_blocking(move || {
            let unmounted = mounted.unmount();
            let unmounted = unmounted.map(|()| mounted.connection().wait_ended(QUIET_AFTER));
            (mounted, unmounted)
        })
        .await
        .map_err(|e| failed(&e))?;
        let ended = match unmounted {
            Ok(ended) => ended,
            Err(error) => {
                // It is still there, so it is still served.
                let mount = Mount {
                    mounted,
                    lease,
                    image,
                    index,
                };
                self.mounts.lock().insert(path, mount);
                return Err(failed(&error));
            }
        };
        let gone = Gone {
            lease,
            image,
            index,
        };
        faults::point("lazy-layer-unmounted");
        if ended {
            self.forget(gone).await;
        } else {
            // Somebody still has a file open: the layer is served until the last one is closed.
            let shared = self.clone();
            tokio::spawn(async move {
                while !served.has_ended() {
                    tokio::time::sleep(QUIET_AFTER).await;
                }
                shared.forget(gone).await;
            });
        }
        Ok(())
    }

    /// Lets go of a layer and of its image's index, and removes what nobody else uses.
    async fn forget(&self, gone: Gone) {
        let Gone {
            lease,
            image,
            index,
        } = gone;
        let key = lease.key();
        drop(lease);
        if self.leaving.load(Ordering::Relaxed) {
            return;
        }
        self.remove_unused(key).await;
        let index_in_use = self
            .mounts
            .lock()
            .values()
            .any(|mount| mount.index == index);
        if !index_in_use {
            self.verdicts.forget(&image);
            let kept = self.discovery.kept.clone();
            // It has logged its failure.
            let _ = spawn_blocking(move || kept.forget(&image, &index)).await;
        }
    }

    /// Removes what is stored of a layer unless somebody uses it.
    async fn remove_unused(&self, key: LayerKey) {
        let _alone = self.opening.folders.write().await;
        if self.layers.in_use(&key) {
            return;
        }
        let store = self.opening.store.clone();
        match spawn_blocking(move || store.remove(key.layer, key.ztoc)).await {
            Ok(Ok(())) => faults::point("lazy-layer-removed"),
            Ok(Err(error)) => {
                tracing::warn!(layer = %key.layer, error = %error, "a stored layer is not removed");
            }
            Err(error) => {
                tracing::warn!(layer = %key.layer, error = %error, "a stored layer is not removed");
            }
        }
    }
}

#[async_trait]
impl LayerProvider for LazyLayers {
    async fn mount(&self, request: LayerRequest) -> Result<MountedInfo, LayerRefusal> {
        self.shared.mount(request, Why::Prepare).await
    }

    async fn restore(&self, request: LayerRequest) -> Result<MountedInfo, LayerRefusal> {
        self.unmount(&request.mountpoint)
            .await
            .map_err(LayerRefusal::failed)?;
        self.shared.mount(request, Why::Restore).await
    }

    async fn unmount(&self, mountpoint: &Path) -> Result<(), ProviderError> {
        self.shared.unmount(mountpoint).await
    }

    async fn check(
        &self,
        mountpoint: &Path,
        _labels: &BTreeMap<String, String>,
    ) -> Result<(), ProviderError> {
        match self.shared.mounts.lock().get(mountpoint) {
            Some(mount) if mount.mounted.is_served() => Ok(()),
            Some(_) => Err(ProviderError::new(
                mountpoint,
                "its FUSE connection was aborted; remove the image and pull it again",
            )),
            None => Err(ProviderError::new(
                mountpoint,
                "it is not mounted; the log of the last start says why",
            )),
        }
    }
}
