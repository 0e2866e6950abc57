//! The layer provider: what the snapshotter asks for, put together from the parts.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use soci_fetch::LayerData;
use soci_fuse::Attr;
use soci_holder::Keeper;
use soci_layer::OverlayXattr;
use soci_layer::{
    LayerProvider, LayerRefusal, LayerRequest, MountedInfo, ProviderError, Purpose, Restored,
    UnpackRequest,
};
use soci_layerfs::{CounterSnapshot, MountOptions, MountedLayer, Tree};
use soci_oci::Digest;
use soci_store::LayerKey;
use soci_telemetry::metrics::{count, duration_ms};
use soci_unpack::Unpacker;
use soci_ztoc::soci_index::ZtocDescriptor;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use crate::discovery::{Discovery, FoundIndex};
use crate::held::{HeldConnection, HeldConnections, HeldError, holder_key};
use crate::image_counts::ImageCounts;
use crate::kept::KeptIndexes;
use crate::labels::{ImageKey, ImageLayer};
use crate::layers::{Layers, Lease};
use crate::look::Look;
use crate::metering::Metering;
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
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    discovery: Discovery,
    verdicts: Verdicts<FoundIndex>,
    opening: Opening,
    layers: Arc<Layers<OpenLayer>>,
    pub(crate) mounts: Mutex<HashMap<PathBuf, Mount>>,
    /// Connections of an earlier process that nobody serves yet.
    pub(crate) held: HeldConnections,
    pub(crate) keeper: Option<Arc<Keeper>>,
    /// Opened because a layer below them was asked for.
    prepared: Mutex<HashMap<LayerKey, Lease<OpenLayer>>>,
    /// What somebody has asked to mount since the start, successfully or not; `None` once the rest
    /// was swept.
    asked: Mutex<Option<Asked>>,
    /// Unmounting means going away, not that the layers are not needed any more.
    leaving: AtomicBool,
    pub(crate) unpacker: Unpacker,
    pub(crate) pool: soci_fuse::Pool,
    pub(crate) metering: Metering,
    pub(crate) image_counts: ImageCounts,
    pub(crate) config: LazyConfig,
}

pub(crate) struct Mount {
    pub(crate) mounted: MountedLayer,
    pub(crate) lease: Lease<OpenLayer>,
    pub(crate) image: ImageKey,
    pub(crate) index: Digest,
    /// What of its counts is in the metrics.
    pub(crate) counted: CounterSnapshot,
}

/// Layers and images that were asked for.
#[derive(Default)]
struct Asked {
    layers: HashSet<Digest>,
    images: HashSet<ImageKey>,
}

impl LazyLayers {
    /// Puts the parts together. `notes` is a folder of our own for what was found out about images.
    ///
    /// # Errors
    /// If what an earlier process left with the holder is not understood.
    pub fn new(parts: Parts, notes: PathBuf) -> Result<Arc<Self>, HeldError> {
        let Parts {
            client,
            layers,
            content,
            unpacker,
            artifacts,
            fetcher,
            pool,
            keeper,
            held,
            meters,
            config,
        } = parts;
        let held = HeldConnections::new(held)?;
        if let Some(keeper) = &keeper {
            let keeper = keeper.clone();
            // Those of the keeper are the last descriptors of a connection that was given up: without them
            // its readers get errors.
            pool.on_end(move |facts| keeper.remove(&holder_key(facts)));
        }
        let asked = Asked {
            layers: held.layers().into_iter().collect(),
            images: held.images().into_iter().collect(),
        };
        Ok(Arc::new(Self {
            shared: Arc::new(Shared {
                discovery: Discovery {
                    client: client.clone(),
                    artifacts: artifacts.clone(),
                    kept: KeptIndexes::new(content, notes),
                    meters: meters.clone(),
                    soci_v1: config.soci_v1,
                    soci_v2: config.soci_v2,
                },
                verdicts: Verdicts::new(config.retry_after),
                opening: Opening {
                    client,
                    artifacts,
                    store: layers,
                    fetcher,
                    meters: meters.clone(),
                    slots: config.max_concurrency.map(Semaphore::new),
                    memory: ZtocMemory::new(config.ztoc_memory),
                    overlay_xattr: OverlayXattr::for_mount(config.userxattr),
                    folders: Arc::default(),
                },
                layers: Arc::default(),
                mounts: Mutex::default(),
                held,
                keeper,
                prepared: Mutex::default(),
                asked: Mutex::new(Some(asked)),
                leaving: AtomicBool::new(false),
                unpacker,
                pool,
                metering: Metering::new(meters),
                image_counts: ImageCounts::default(),
                config,
            }),
        }))
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
        prepare: bool,
    ) -> Result<(Arc<FoundIndex>, ZtocDescriptor), LayerRefusal> {
        let find = self.discovery.find(&request.image);
        let found = match prepare {
            true => self.verdicts.get(&request.image, find).await?,
            // The index was there once, so that failing to find it will pass, and a container waits.
            false => {
                let shortly = self.config.retry_after.min(RETRY_RESTORE);
                self.verdicts
                    .get_unless_older(&request.image, shortly, find)
                    .await?
            }
        };
        match found.index.ztoc_for(&request.layer) {
            Some(ztoc) => Ok((found.clone(), ztoc.clone())),
            None => Err(LayerRefusal::no_ztoc(format!(
                "index {} does not list layer {}",
                found.digest, request.layer
            ))),
        }
    }

    pub(crate) async fn acquire(
        &self,
        image: &ImageKey,
        ztoc: &ZtocDescriptor,
    ) -> Result<Lease<OpenLayer>, LayerRefusal> {
        let key = LayerKey {
            layer: ztoc.layer_digest,
            ztoc: ztoc.descriptor.digest,
        };
        let stays = self.opening.store.is_stored(key);
        let missed = AtomicBool::new(false);
        // Boxed: a request to a registry is a large future.
        let open = Box::pin(async {
            missed.store(true, Ordering::Relaxed);
            self.opening.open(image, ztoc).await
        });
        let lease = self.layers.acquire(key, open).await;
        let resolved = match missed.load(Ordering::Relaxed) {
            true => count::RESOLVE_CACHE_MISS,
            false => count::RESOLVE_CACHE_HIT,
        };
        match &lease {
            Ok(lease) => {
                let label = key.layer.to_string();
                self.metering.meters.count(resolved, &label, 1);
                lease.layer().sources.add(&image.reference);
            }
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
            let is_above = request.above.iter().any(|above| above.layer == key.layer);
            if !is_above || self.layers.in_use(&key) {
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
    pub(crate) async fn mount(
        self: &Arc<Self>,
        request: LayerRequest,
        adopted: Option<Box<HeldConnection>>,
    ) -> Result<MountedInfo, LayerRefusal> {
        let start = Instant::now();
        let mut layer = ImageLayer::from_labels(&request.labels)?;
        if self.discovery.artifacts.by_namespace() {
            layer.image.namespace.clone_from(&request.namespace);
        }
        if let Some(asked) = self.asked.lock().as_mut() {
            asked.layers.insert(layer.layer);
            asked.images.insert(layer.image.clone());
        }
        let minimum = self.config.min_layer_size;
        // A layer that is lazy already stays so, whatever the configuration says now.
        let prepare = request.purpose == Purpose::ImageLayer;
        if prepare
            && let Some(size) = layer.size
            && size < minimum
        {
            self.fetch_above(&request.namespace, &layer, None);
            return Err(LayerRefusal::BelowMinSize { size, minimum });
        }
        // Which layer this mount is the first to store anything of.
        let mut first = None;
        let mounted = async {
            let getting_ready = async {
                let (found, ztoc) = self.ztoc_of(&layer, prepare).await?;
                if prepare {
                    // They will be asked for next.
                    self.prepare_above(&layer, &found);
                    self.fetch_above(&request.namespace, &layer, Some(&found));
                }
                let key = LayerKey {
                    layer: ztoc.layer_digest,
                    ztoc: ztoc.descriptor.digest,
                };
                first = (!self.opening.store.is_stored(key)).then_some(key);
                let lease = self.acquire(&layer.image, &ztoc).await?;
                Ok((found.digest, ztoc, lease))
            };
            let limit = self.config.mount_timeout;
            let (index, ztoc, lease) =
                tokio::time::timeout(limit, getting_ready)
                    .await
                    .map_err(|_| {
                        LayerRefusal::failed(format!(
                            "index and zTOC were not here within mount_timeout_sec = {}",
                            limit.as_secs()
                        ))
                    })??;
            let (mounted, lease, root) = match adopted {
                Some(held) => self.take_up(*held, lease).await?,
                None => {
                    let look = Look {
                        disable_xattrs: ztoc.disable_xattrs,
                        mark: self.opening.overlay_xattr,
                        id_maps: request.view.id_maps.clone(),
                        answer_xattrs: request.view.answer_xattrs,
                    };
                    let at = &request.mountpoint;
                    let (mounted, lease, root) = self.mount_at(at, lease, look.clone()).await?;
                    self.hold(&mounted, &layer.image, index, &ztoc, &look).await;
                    (mounted, lease, root)
                }
            };
            Ok((index, mounted, lease, root))
        };
        let mounted = mounted.await;
        if let Err(LayerRefusal::Failed { .. }) = &mounted {
            let meters = &self.metering.meters;
            meters.count(count::FUSE_MOUNT_FAILURE, "", 1);
        }
        if let (Err(_), Some(key)) = (&mounted, first) {
            self.remove_unused(key).await;
        }
        let (index, mounted, lease, root) = mounted?;
        soci_faults::point("lazy-layer-mounted");
        if !self.config.disable_background {
            lease.layer().data.start_background();
        }
        let (key, manifest) = (lease.key(), layer.image.manifest);
        self.prepared.lock().remove(&key);
        self.mounts.lock().insert(
            request.mountpoint,
            Mount {
                mounted,
                lease,
                image: layer.image,
                index,
                counted: CounterSnapshot::default(),
            },
        );
        let label = key.layer.to_string();
        let meters = &self.metering.meters;
        meters.took(duration_ms::MOUNT, &label, start.elapsed());
        self.watch_image(manifest);
        Ok(MountedInfo {
            uid: root.uid,
            gid: root.gid,
            mode: root.mode & 0o7777,
        })
    }

    pub(crate) fn mount_options(&self, lease: &Lease<OpenLayer>, look: &Look) -> MountOptions {
        MountOptions {
            attr_timeout: self.config.attr_timeout,
            entry_timeout: self.config.entry_timeout,
            negative_timeout: self.config.negative_timeout,
            limits: soci_fuse::Limits {
                resend: self.config.resend,
                ..soci_fuse::Limits::default()
            },
            timers: self.metering.timers(&lease.key().layer),
            answer_xattrs: look.answer_xattrs,
            log_operations: self.config.log_fuse_operations,
            ..MountOptions::default()
        }
    }

    async fn mount_at(
        &self,
        mountpoint: &Path,
        lease: Lease<OpenLayer>,
        look: Look,
    ) -> Result<(MountedLayer, Lease<OpenLayer>, Attr), LayerRefusal> {
        let (pool, mountpoint) = (self.pool.clone(), mountpoint.to_owned());
        let options = self.mount_options(&lease, &look);
        let meters = self.metering.meters.clone();
        spawn_blocking(move || {
            let layer = lease.layer();
            let data: Arc<dyn LayerData> = layer.data.clone();
            let tree = look.at(&layer.tree);
            let root = tree.root_attr();
            let start = Instant::now();
            let mounted = soci_layerfs::mount_layer(&pool, tree, data, &mountpoint, options);
            if mounted.is_ok() {
                let label = lease.key().layer.to_string();
                meters.took(duration_ms::FUSE_MOUNT, &label, start.elapsed());
            }
            mounted.map(|mounted| (mounted, lease, root))
        })
        .await
        .map_err(LayerRefusal::failed)?
        .map_err(LayerRefusal::failed)
    }

    pub(crate) async fn unmount(self: &Arc<Self>, mountpoint: &Path) -> Result<(), ProviderError> {
        let mount = self.mounts.lock().remove(mountpoint);
        let path = mountpoint.to_owned();
        let Some(Mount {
            mounted,
            lease,
            image,
            index,
            counted,
        }) = mount
        else {
            // Perhaps a process before this one mounted it.
            if let Some(held) = self.held.take_mounted(&path) {
                self.see_off(held).await;
            }
            return spawn_blocking(move || soci_fuse::unmount(&path))
                .await
                .map_err(|e| ProviderError::new(mountpoint, e))?
                .map_err(|e| ProviderError::new(mountpoint, e));
        };
        let (mounted, unmounted) = spawn_blocking(move || {
            let unmounted = mounted.unmount();
            let unmounted = unmounted.map(|()| mounted.connection().wait_ended(QUIET_AFTER));
            (mounted, unmounted)
        })
        .await
        .map_err(|e| ProviderError::new(mountpoint, e))?;
        let ended = match unmounted {
            Ok(ended) => ended,
            Err(error) => {
                // It is still there, so it is still served.
                let mount = Mount {
                    mounted,
                    lease,
                    image,
                    index,
                    counted,
                };
                self.mounts.lock().insert(path, mount);
                return Err(ProviderError::new(mountpoint, error));
            }
        };
        let gone = Mount {
            mounted,
            lease,
            image,
            index,
            counted,
        };
        soci_faults::point("lazy-layer-unmounted");
        if ended {
            self.forget(gone).await;
        } else {
            self.forget_when_ended(gone);
        }
        Ok(())
    }

    /// Somebody still has a file open: the layer is served until the last one is closed.
    pub(crate) fn forget_when_ended(self: &Arc<Self>, gone: Mount) {
        let shared = self.clone();
        tokio::spawn(async move {
            while !gone.mounted.connection().has_ended() {
                tokio::time::sleep(QUIET_AFTER).await;
            }
            shared.forget(gone).await;
        });
    }

    /// The files of the layer that is mounted there.
    pub(crate) fn tree_at(&self, mountpoint: &Path) -> Option<Arc<Tree>> {
        let mounts = self.mounts.lock();
        Some(mounts.get(mountpoint)?.lease.layer().tree.clone())
    }

    /// Lets go of a layer and of its image's index, and removes what nobody else uses.
    async fn forget(&self, gone: Mount) {
        let Mount {
            mounted,
            lease,
            image,
            index,
            mut counted,
        } = gone;
        let key = lease.key();
        self.metering.layer(&key.layer, lease.layer());
        let now = mounted.counters();
        self.metering.mount(&key.layer, now, &mut counted);
        drop(lease);
        if self.leaving.load(Ordering::Relaxed) {
            return;
        }
        self.let_go(mounted.facts());
        self.remove_unused(key).await;
        let image_in_use = {
            let mounts = self.mounts.lock();
            mounts
                .values()
                .any(|mount| mount.image.manifest == image.manifest)
        };
        if !image_in_use {
            self.forget_image(&image.manifest);
        }
        let users: Vec<String> = self
            .mounts
            .lock()
            .values()
            .filter(|mount| mount.index == index)
            .map(|mount| mount.image.namespace.clone())
            .collect();
        if !users.contains(&image.namespace) {
            let artifacts = &self.discovery.artifacts;
            artifacts.release_index(&image.namespace, &index).await;
        }
        if users.is_empty() {
            self.metering.meters.forget_layer(&index.to_string());
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
        if !self.layers.any_in_use(|other| other.layer == key.layer) {
            let label = key.layer.to_string();
            self.metering.meters.forget_layer(&label);
        }
        let store = self.opening.store.clone();
        match spawn_blocking(move || store.remove(key.layer, key.ztoc)).await {
            Ok(Ok(())) => soci_faults::point("lazy-layer-removed"),
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
        self.shared.mount(request, None).await
    }

    async fn restore(&self, request: LayerRequest) -> Result<Restored, LayerRefusal> {
        self.shared.restore(request).await
    }

    async fn unpack(
        &self,
        request: UnpackRequest,
        cancel: CancellationToken,
    ) -> Result<(), LayerRefusal> {
        self.shared.unpack(request, &cancel).await
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
                "its FUSE connection has ended; restart the daemon to have it mounted anew",
            )),
            None => Err(ProviderError::new(
                mountpoint,
                "it is not mounted; the log of the last start says why",
            )),
        }
    }
}
