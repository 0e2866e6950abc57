//! The lazy layers of a daemon: the four parts and how they are connected.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use soci_layer::{LayerRefusal, LowerLayer, OverlayXattr, ParentLayer};
use soci_oci::Digest;
use soci_store::LayerKey;
use tokio::sync::Semaphore;

use crate::hints::Hints;
use crate::holder_link::HolderLink;
use crate::image_counts::ImageCounts;
use crate::image_store::ImageStore;
use crate::implied::ImpliedInUse;
use crate::index_cache::IndexCache;
use crate::index_files::IndexFiles;
use crate::inherited::InheritedConnections;
use crate::layer_loader::LayerLoader;
use crate::layer_opener::LayerOpener;
use crate::lease::LeaseMap;
use crate::local_unpack::LocalUnpack;
use crate::lookup_cache::LookupCache;
use crate::metering::Metering;
use crate::mount_table::MountTable;
use crate::open_layer::OpenLayer;
use crate::opened_ahead::OpenedAhead;
use crate::outages::Outages;
use crate::start_up::StartUps;
use crate::store_limit::{self, StoreLimit};
use crate::store_work::store_work;
use crate::sweeper::{Requested, Sweeper};
use crate::tree_memory::TreeMemory;
use crate::verifier::Verifier;
use crate::ztoc_memory::ZtocMemory;
use crate::{Components, InheritedError, LazyConfig, MountReport, ProfileCounts, ProfileReport};

/// The lazy layers of a daemon.
pub struct LazyLayers {
    pub(crate) indexes: Arc<IndexCache>,
    pub(crate) opener: Arc<LayerOpener>,
    pub(crate) table: Arc<MountTable>,
    pub(crate) sweeper: Arc<Sweeper>,
    pub(crate) unpack: LocalUnpack,
    pub(crate) start_ups: Arc<StartUps>,
    pub(crate) images: Arc<ImageStore>,
    pub(crate) verifier: Arc<Verifier>,
    pub(crate) implied: ImpliedInUse,
    /// Connections of an earlier process that are not served yet.
    pub(crate) inherited: Arc<InheritedConnections>,
    pub(crate) config: LazyConfig,
}

impl LazyLayers {
    /// Connects the components. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// A note that an earlier process left with the holder is malformed or of another version.
    pub fn new(components: Components) -> Result<Arc<Self>, InheritedError> {
        let config = components.config;
        let (client, meters) = (components.client, components.meters);
        let inherited = Arc::new(InheritedConnections::new(components.held)?);
        let images = Arc::new(components.images);
        let outages = Arc::<Outages>::default();
        let indexes = Arc::new(IndexCache {
            outages: outages.clone(),
            client: client.clone(),
            artifacts: components.artifacts.clone(),
            images: images.clone(),
            files: IndexFiles::new(components.content, components.index_notes),
            lookups: LookupCache::new(config.retry_after),
            uses: Arc::default(),
            meters: meters.clone(),
            policy: config.policy,
            time_limit: config.mount_timeout,
        });
        let leases = Arc::<LeaseMap<OpenLayer>>::default();
        let hints = Hints::new(&config.hints);
        let own_reader = hints.own_reader.clone();
        let start_ups = StartUps::new(
            components.profiles,
            client.clone(),
            components.artifacts.clone(),
            &config.profiles,
            leases.clone(),
            config.mount_timeout,
            hints,
        );
        let loader = LayerLoader {
            client,
            images: images.clone(),
            outages: outages.clone(),
            artifacts: components.artifacts,
            store: components.layers.clone(),
            fetcher: components.fetcher,
            meters: meters.clone(),
            slots: config.max_concurrency.map(Semaphore::new),
            memory: ZtocMemory::new(config.ztoc_memory, config.limits.ztoc),
            time_limit: config.mount_timeout,
            trees: TreeMemory::new(config.limits),
            overlay_xattr: OverlayXattr::for_mount(config.userxattr),
            directories: Arc::default(),
        };
        let sweeper = Arc::new(Sweeper {
            store: components.layers,
            leases: leases.clone(),
            indexes: indexes.files.clone(),
            meters: meters.clone(),
            directories: loader.directories.clone(),
            requested: Mutex::new(Some(Requested {
                layers: inherited.layers().into_iter().collect(),
                images: inherited.images().into_iter().collect(),
            })),
        });
        let opener = Arc::new(LayerOpener {
            start_ups: start_ups.clone(),
            loader,
            isolated: config.isolated,
            leases,
            ahead: OpenedAhead::default(),
            sweeper: sweeper.clone(),
            meters: meters.clone(),
            time_limit: config.mount_timeout,
        });
        let table = Arc::new(MountTable {
            mounts: Mutex::default(),
            holder: HolderLink::new(components.keeper, &components.pool),
            pool: components.pool,
            indexes: indexes.clone(),
            sweeper: sweeper.clone(),
            metering: Metering::new(meters),
            image_counts: ImageCounts::default(),
            start_ups: start_ups.clone(),
            store_limit: StoreLimit::default(),
            leaving: AtomicBool::new(false),
            own_reader,
            config: config.clone(),
        });
        tokio::spawn(store_limit::run(Arc::downgrade(&table)));
        tokio::spawn(IndexCache::store_refused(Arc::downgrade(&indexes)));
        let verifier = Arc::new(Verifier::new(Arc::downgrade(&table)));
        tokio::spawn(verifier.clone().run_in_background());
        Ok(Arc::new(Self {
            images,
            verifier,
            unpack: LocalUnpack {
                unpacker: components.unpacker,
                outages,
                table: table.clone(),
                meters: indexes.meters.clone(),
                overlay_xattr: OverlayXattr::for_mount(config.userxattr),
                min_layer_size: config.min_layer_size,
            },
            start_ups,
            indexes,
            opener,
            table,
            sweeper,
            implied: ImpliedInUse::default(),
            inherited,
            config,
        }))
    }

    /// Makes unmounting keep what is stored from now on: the daemon ends, the snapshots stay.
    pub fn leave(&self) {
        self.table.leaving.store(true, Ordering::Relaxed);
        self.start_ups.leave();
    }

    /// Makes fetched spans durable. To be called last, after the fetcher was shut down.
    pub async fn flush(&self) {
        self.opener.ahead.clear();
        let store = self.sweeper.store.clone();
        if let Err(error) = store_work(move || store.sync()).await {
            let error = soci_errors::chain(&error);
            tracing::warn!(error, "cannot make fetched spans durable");
        }
    }

    /// Removes stored layers and indexes that no snapshot has requested, once the snapshots of an
    /// earlier run have been restored.
    pub async fn sweep(&self) {
        self.sweeper.sweep().await;
    }

    /// Whether a stored layer is in use, or may be: not all snapshots of an earlier run are restored.
    #[must_use]
    pub fn needs(&self, key: LayerKey) -> bool {
        self.sweeper.requested.lock().is_some() || self.sweeper.leases.in_use(&key)
    }

    /// Removes what is stored of a layer unless it is in use.
    pub async fn remove_unneeded(&self, key: LayerKey) {
        if !self.needs(key) {
            self.sweeper.remove_unused(key).await;
        }
    }

    /// Opens the layers below one that is unpacked: directories, and lazy layers through their trees.
    ///
    /// # Errors
    /// A lazy layer is not mounted.
    pub fn lower_layers(
        &self,
        parents: &[ParentLayer],
    ) -> Result<Vec<Box<dyn LowerLayer>>, LayerRefusal> {
        let lower = self.table.lower_layers(parents);
        lower.map_err(LayerRefusal::unpack_failed)
    }

    /// Lists the mounted layers by mount point.
    #[must_use]
    pub fn mounts(&self) -> Vec<MountReport> {
        self.table.report()
    }

    /// Puts the layers that are mounted there before all others in filling for some time, also where
    /// filling is turned off: a client waits for them.
    pub fn request_fill(&self, mountpoints: &HashSet<PathBuf>, time: Duration) {
        self.table.request_fill(mountpoints, time);
    }

    /// Manifest and uppermost chain ID of an image that containerd has, by its name or the digest of
    /// its manifest.
    pub async fn image_in_containerd(
        &self,
        namespace: &str,
        image: &str,
    ) -> Option<(Digest, Digest)> {
        // Boxed: calls of containerd are large futures.
        let found = match image.parse::<Digest>() {
            Ok(manifest) => Box::pin(self.images.image(namespace, manifest))
                .await
                .ok()??,
            Err(_) => {
                let reference = image.parse().ok()?;
                Box::pin(self.images.named(namespace, &reference)).await?
            }
        };
        Some((found.digest, *found.chain_ids.last()?))
    }

    /// Number of layers of an image, if containerd has its manifest.
    pub async fn number_of_layers(&self, namespace: &str, manifest: Digest) -> Option<usize> {
        // Boxed: calls of containerd are large futures.
        let image = Box::pin(self.images.image(namespace, manifest)).await;
        image.ok()?.map(|image| image.manifest.layers.len())
    }

    /// Returns what start-up profiles have done.
    #[must_use]
    pub fn profile_counts(&self) -> ProfileCounts {
        self.start_ups.counts()
    }

    /// Returns what start-up profiles have done, are doing, and how many are stored.
    pub async fn profiles(&self) -> ProfileReport {
        self.start_ups.report().await
    }

    /// Adds what has been counted since the last call to the metrics.
    pub fn update_metrics(&self) {
        self.table.update_metrics();
    }
}
