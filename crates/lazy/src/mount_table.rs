//! The mounted layers, and what ends with the last mount of a layer, an image, an index.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use soci_fetch::LayerData;
use soci_fuse::{Connection, Pool};
use soci_layer::{LayerRefusal, LowerLayer, MountedInfo, ParentLayer, ProviderError};
use soci_layerfs::{
    CounterSnapshot, LayerMountOptions, MountedLayer, OwnReader, OwnReads, TreeView,
};
use soci_oci::Digest;
use soci_store::LayerKey;
use soci_telemetry::metrics::duration_ms;
use soci_unpack::LowerDirectory;
use soci_ztoc::soci_index::ZtocDescriptor;
use tokio::time::Instant;

use crate::LazyConfig;
use crate::holder_link::HolderLink;
use crate::image_counts::{self, ImageCounts};
use crate::image_layer::ImageKey;
use crate::implied::Implied;
use crate::index_cache::IndexCache;
use crate::index_uses::IndexUse;
use crate::inherited::ConnectionNote;
use crate::lease::Lease;
use crate::metering::Metering;
use crate::open_layer::OpenLayer;
use crate::start_up::StartUps;
use crate::store_limit::StoreLimit;
use crate::sweeper::Sweeper;
use crate::view::ViewOptions;

/// Time after which an unmounted layer whose connection has not ended counts as in use.
const QUIET_AFTER: Duration = Duration::from_secs(1);

/// The mounted layers, by mount point.
pub(crate) struct MountTable {
    pub(crate) mounts: Mutex<HashMap<PathBuf, Arc<Mount>>>,
    pub(crate) pool: Pool,
    pub(crate) holder: HolderLink,
    pub(crate) indexes: Arc<IndexCache>,
    pub(crate) sweeper: Arc<Sweeper>,
    pub(crate) metering: Metering,
    pub(crate) image_counts: ImageCounts,
    pub(crate) start_ups: Arc<StartUps>,
    pub(crate) store_limit: StoreLimit,
    /// The daemon ends and the snapshots stay: unmounting removes nothing that is stored.
    pub(crate) leaving: AtomicBool,
    /// The process that reads into the page cache.
    pub(crate) own_reader: Arc<OwnReader>,
    pub(crate) config: LazyConfig,
}

/// An open layer and the image that it is mounted for.
pub(crate) struct ReadyLayer {
    pub(crate) lease: Lease<OpenLayer>,
    pub(crate) image: ImageKey,
    /// The SOCI index that lists the layer, in use.
    pub(crate) index: IndexUse,
    pub(crate) ztoc: ZtocDescriptor,
    pub(crate) view: ViewOptions,
    /// What its implied directories look like at this place.
    pub(crate) implied: Option<Arc<Implied>>,
}

impl ReadyLayer {
    /// The layer's files as its image describes them, on top of the layers below.
    fn tree_view(&self) -> TreeView {
        let implied = self.implied.as_ref();
        let implied = implied.map(|implied| Arc::clone(&implied.directories));
        TreeView::from(self.lease.layer().tree.clone()).with_implied(implied)
    }
}

/// A mounted layer.
pub(crate) struct Mount {
    pub(crate) layer: ReadyLayer,
    pub(crate) mounted: MountedLayer,
    /// The attributes of its root directory.
    pub(crate) root: MountedInfo,
    /// The part of its counts that is in the metrics.
    counted: Mutex<CounterSnapshot>,
}

impl Mount {
    /// The key of the layer.
    pub(crate) fn key(&self) -> LayerKey {
        self.layer.lease.key()
    }
}

impl MountTable {
    /// Mounts a layer and leaves its connection with the holder. It is not in the table yet.
    pub(crate) async fn mount(
        &self,
        layer: ReadyLayer,
        mountpoint: PathBuf,
    ) -> Result<Mount, LayerRefusal> {
        let (meters, label) = (self.metering.meters.clone(), layer.lease.key().layer);
        let mount = self.serve(layer, move |pool, view, data, options| {
            let start = std::time::Instant::now();
            let mounted = soci_layerfs::mount_layer(pool, view, data, &mountpoint, options)?;
            meters.took(duration_ms::FUSE_MOUNT, &label.to_string(), start.elapsed());
            Ok::<_, soci_layerfs::MountError>(mounted)
        });
        let mount = mount.await?;
        let ReadyLayer {
            image,
            index,
            ztoc,
            view,
            ..
        } = &mount.layer;
        let facts = mount.mounted.facts().clone();
        let note = ConnectionNote::new(facts, image, index.index(), ztoc, view);
        self.holder.keep(&mount.mounted, &note).await;
        Ok(mount)
    }

    /// Serves a layer on the live connection of an earlier process. It is not in the table yet.
    pub(crate) async fn adopt(
        &self,
        layer: ReadyLayer,
        connection: Connection,
    ) -> Result<Mount, LayerRefusal> {
        let adopt = move |pool: &Pool, view, data, options| {
            soci_layerfs::adopt_layer(pool, view, data, connection, options)
        };
        self.serve(layer, adopt).await
    }

    async fn serve<E>(
        &self,
        layer: ReadyLayer,
        begin: impl FnOnce(
            &Pool,
            TreeView,
            Arc<dyn LayerData>,
            LayerMountOptions,
        ) -> Result<MountedLayer, E>
        + Send
        + 'static,
    ) -> Result<Mount, LayerRefusal>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let (pool, options) = (self.pool.clone(), self.options(&layer));
        let serve = move || {
            let open = layer.lease.layer();
            let view = layer.view.apply(layer.tree_view());
            let root = view.root_attr();
            let mounted = begin(&pool, view, open.data.clone(), options)?;
            Ok::<_, E>(Mount {
                layer,
                mounted,
                root: MountedInfo {
                    uid: root.uid,
                    gid: root.gid,
                    mode: root.mode & 0o7777,
                },
                counted: Mutex::default(),
            })
        };
        let served = soci_task::run(serve).await.map_err(LayerRefusal::failed)?;
        served.map_err(LayerRefusal::failed)
    }

    fn options(&self, layer: &ReadyLayer) -> LayerMountOptions {
        LayerMountOptions {
            attr_timeout: self.config.attr_timeout,
            entry_timeout: self.config.entry_timeout,
            negative_timeout: self.config.negative_timeout,
            limits: soci_fuse::SessionLimits {
                resend: self.config.resend,
                ..soci_fuse::SessionLimits::default()
            },
            timers: self.metering.timers(&layer.lease.key().layer),
            answer_xattrs: layer.view.answer_xattrs,
            check_headers: self.config.check_headers,
            log_operations: self.config.log_fuse_operations,
            watch: layer.lease.layer().watch.clone(),
            own_reads: Some(OwnReads {
                reader: self.own_reader.clone(),
                data: layer.lease.layer().data.clone().for_page_cache(),
            }),
            ..LayerMountOptions::default()
        }
    }

    /// Enters a mount into the table, and has the operations of its image counted.
    pub(crate) fn insert(self: &Arc<Self>, mountpoint: PathBuf, mount: Mount) {
        let manifest = mount.layer.image.manifest;
        self.start_ups
            .mounted(&manifest, mount.key(), &mount.mounted);
        self.mounts.lock().insert(mountpoint, Arc::new(mount));
        if !self.image_counts.begin(manifest) {
            return;
        }
        let (table, wait) = (Arc::downgrade(self), self.config.operation_count_wait);
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            if let Some(table) = table.upgrade()
                && let Some(counts) = table.image_operations(&manifest)
            {
                image_counts::report(&table.metering.meters, &manifest, &counts);
            }
        });
    }

    /// Unmounts a layer. Returns false if it is not in the table.
    pub(crate) async fn unmount(
        self: &Arc<Self>,
        mountpoint: &Path,
    ) -> Result<bool, ProviderError> {
        let Some(mount) = self.mounts.lock().remove(mountpoint) else {
            return Ok(false);
        };
        let unmounting = mount.clone();
        let unmounted = soci_task::run(move || {
            let mounted = &unmounting.mounted;
            let unmounted = mounted.unmount();
            unmounted.map(|()| mounted.connection().wait_ended(QUIET_AFTER))
        });
        let failure = match unmounted.await {
            Ok(Ok(ended)) => {
                soci_faults::point("lazy-layer-unmounted");
                match ended {
                    true => self.forget(mount).await,
                    false => self.forget_when_ended(mount),
                }
                return Ok(true);
            }
            Ok(Err(error)) => ProviderError::new(mountpoint, error),
            Err(error) => ProviderError::new(mountpoint, error),
        };
        // It is still mounted, so it is still served.
        self.mounts.lock().insert(mountpoint.to_owned(), mount);
        Err(failure)
    }

    /// Serves an unmounted layer until the last open file on it is closed.
    pub(crate) fn forget_when_ended(self: &Arc<Self>, mount: Arc<Mount>) {
        let table = self.clone();
        tokio::spawn(async move {
            let mut release = Some(Instant::now());
            while !mount.mounted.connection().has_ended() {
                let due = release.is_some_and(|at| at <= Instant::now());
                if due && !table.leaving.load(Ordering::Relaxed) {
                    let (key, layer) = (mount.key(), mount.layer.lease.layer());
                    let again = table.release(key, layer).await;
                    release = again.map(|wait| Instant::now() + wait);
                }
                tokio::time::sleep(QUIET_AFTER).await;
            }
            table.forget(mount).await;
        });
    }

    /// Releases the layer and the index of a mount that has ended, and removes those that no other
    /// mount uses.
    async fn forget(&self, mount: Arc<Mount>) {
        self.count(&mount);
        let (key, facts) = (mount.key(), mount.mounted.facts().clone());
        let (image, index) = (mount.layer.image.clone(), mount.layer.index.index());
        // The last reference: it ends the lease.
        drop(mount);
        if self.leaving.load(Ordering::Relaxed) {
            return;
        }
        self.holder.release(&facts);
        self.sweeper.remove_unused(key).await;
        if !self.any(|other| other.image.manifest == image.manifest) {
            self.image_counts.end(&image.manifest);
            let meters = &self.metering.meters;
            meters.forget_image(&image.manifest.to_string());
        }
        self.indexes.release(&image.namespace, index).await;
        self.indexes.release_abandoned().await;
    }

    /// Whether any mounted layer fits.
    fn any(&self, fits: impl Fn(&ReadyLayer) -> bool) -> bool {
        let mounts = self.mounts.lock();
        mounts.values().any(|mount| fits(&mount.layer))
    }

    /// Adds what a mount has counted to the metrics.
    pub(crate) fn count(&self, mount: &Mount) {
        let layer = mount.key().layer;
        self.metering.layer(&layer, mount.layer.lease.layer());
        let mut counted = mount.counted.lock();
        self.metering
            .mount(&layer, mount.mounted.counters(), &mut counted);
    }

    /// Lists the layers that are mounted, each once.
    pub(crate) fn open_layers(&self) -> Vec<Arc<OpenLayer>> {
        let mounts = self.mounts.lock();
        let layers = mounts
            .values()
            .map(|mount| (mount.key(), mount.layer.lease.layer().clone()));
        let layers: HashMap<LayerKey, Arc<OpenLayer>> = layers.collect();
        layers.into_values().collect()
    }

    /// Whether the layer is mounted anywhere.
    pub(crate) fn is_mounted(&self, layer: &Arc<OpenLayer>) -> bool {
        let mounts = self.mounts.lock();
        let mut mounted = mounts.values().map(|mount| mount.layer.lease.layer());
        mounted.any(|mounted| Arc::ptr_eq(mounted, layer))
    }

    /// Returns the layers below another, as it is unpacked or mounted there. Lazy ones are read
    /// through their trees: a request to our own mount may wait for this daemon.
    pub(crate) fn lower_layers(
        &self,
        parents: &[ParentLayer],
    ) -> Result<Vec<Box<dyn LowerLayer>>, ProviderError> {
        let mounts = self.mounts.lock();
        let lower = parents.iter().map(|ParentLayer { directory, lazy }| {
            if !lazy {
                return Ok(Box::new(LowerDirectory(directory.clone())) as Box<dyn LowerLayer>);
            }
            let mount = mounts.get(directory);
            let mount = mount.ok_or_else(|| {
                ProviderError::new(directory, "the lazy layer below is not mounted")
            })?;
            Ok(Box::new(mount.layer.tree_view()))
        });
        lower.collect()
    }

    /// Checks that a layer is mounted at `mountpoint` and served.
    pub(crate) fn check(&self, mountpoint: &Path) -> Result<(), ProviderError> {
        let problem = match self.mounts.lock().get(mountpoint) {
            Some(mount) if mount.mounted.is_served() => return Ok(()),
            Some(_) => "its FUSE connection has ended; restart the daemon to mount it again",
            None => "it is not mounted; see the log of the last start",
        };
        Err(ProviderError::new(mountpoint, problem))
    }

    /// Returns the counts of an image's mounts; `None` if there are none.
    fn image_operations(&self, manifest: &Digest) -> Option<Vec<CounterSnapshot>> {
        let mounts = self.mounts.lock();
        let of_image = mounts
            .values()
            .filter(|mount| mount.layer.image.manifest == *manifest);
        let counts: Vec<_> = of_image.map(|mount| mount.mounted.counters()).collect();
        (!counts.is_empty()).then_some(counts)
    }
}
