//! Builds the subsystems from the configuration, and the snapshotter from the subsystems.

use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::Context as _;
use soci_config::Config;
use soci_eager::{EagerConfig, EagerLayers};
use soci_fetch::SpanFetcher;
use soci_fuse::Journal;
use soci_holder::Keeper;
use soci_keychain::{CriKeychain, ImageServiceProxy};
use soci_lazy::{Artifacts, ImageStore, LazyLayers};
use soci_registry::Client;
use soci_snapshotter::{Snapshotter, SnapshotterConfig};
use soci_store::LayerStore;
use soci_store::StoredZtocs;
use soci_store::content::OciLayout;
use soci_unpack::{Pipeline, Unpacker};
use tokio::runtime::Handle;

use crate::credentials::CredentialSources;
use crate::holder_setup::Inherited;
use crate::supervision::Stop;
use crate::{credential_memfd, credentials, settings, v015_cleanup};

/// How long layers of an earlier run may delay the start. What takes longer, because it needs a registry, is
/// completed while the daemon serves.
const RESTORE_PATIENCE: Duration = Duration::from_secs(10);

/// Time between two looks for eager pulls.
const LOOK_FOR_PULLS: Duration = Duration::from_millis(500);

/// The running subsystems, to be ended in order.
pub(crate) struct Subsystems {
    pub(crate) snapshotter: Arc<Snapshotter>,
    /// With `[cri_keychain] enable_keychain`.
    pub(crate) image_service: Option<ImageServiceProxy>,
    pub(crate) lazy: Arc<LazyLayers>,
    pub(crate) eager: Arc<EagerLayers>,
    pub(crate) pipeline: Arc<Pipeline>,
    pub(crate) client: Client,
    pub(crate) fetcher: Arc<SpanFetcher>,
    pub(crate) pool: soci_fuse::Pool,
    pub(crate) store: LayerStore,
    pub(crate) meters: Arc<soci_telemetry::Meters>,
    /// The holder, which keeps the connections when this process ends.
    pub(crate) keeper: Option<Arc<Keeper>>,
    pub(crate) journal: Arc<Journal>,
}

impl Subsystems {
    /// Ends the work behind the service; after [`Stop::Clean`] no layer is mounted. Fetched data
    /// stays in both cases. Returns the number of connections that were served until now.
    pub(crate) async fn close(self, stop: Stop) -> usize {
        self.lazy.leave();
        let pool = self.pool;
        let connections = pool.connections();
        if stop == Stop::LeaveMounts {
            // Before anything ends that requests wait for: they are left to the next server.
            self.journal.leaving_on_purpose();
            end(pool.clone()).await;
        }
        self.snapshotter.close(stop == Stop::Clean).await;
        self.eager.close().await;
        self.fetcher.shutdown().await;
        log_fetched(&self.fetcher.stats());
        self.lazy.flush().await;
        end(pool).await;
        connections
    }
}

/// Ends the threads that serve file systems, which takes a second at most.
async fn end(pool: soci_fuse::Pool) {
    // A panic there is logged by the hook.
    let _ = soci_task::run(move || pool.shutdown()).await;
}

/// Builds everything below the gRPC service, and restores the layers of an earlier run.
pub(crate) async fn wire(
    root: &Path,
    config: &Config,
    inherited: Inherited,
) -> anyhow::Result<Subsystems> {
    let stored = inherited.credentials.and_then(credential_memfd::read);
    let credentials = CredentialSources::new(config, inherited.keeper.as_ref(), stored.as_deref());
    let registries = settings::client(config);
    for folder in &registries.hosts_dirs {
        tracing::info!(
            folder = %folder.display(),
            "using containerd's registry configuration (hosts.toml)"
        );
    }
    let client = Client::new(registries, credentials.chain)?;
    let layers = LayerStore::open(&root.join("soci/layers"), settings::layer_store(config))?;
    let content = OciLayout::open_private(&root.join("content"))?;

    let fetcher = fetcher(config);
    // The threads wait for the disk at times, never for the network.
    let threads = std::thread::available_parallelism().map_or(4, |cores| cores.get().clamp(4, 16));
    let pool = soci_fuse::Pool::new(threads, inherited.journal.clone())
        .context("cannot start the threads that serve file systems")?;

    let userxattr = soci_snapshotter::needs_userxattr(root);
    let unpacker = unpacker(root, config, client.clone(), Arc::downgrade(&fetcher))?;
    let pipeline = unpacker.pipeline().clone();
    let meters = Arc::new(soci_telemetry::Meters::new()?);
    let keeper = inherited.keeper.clone();
    let components = soci_lazy::Components {
        client: client.clone(),
        layers: layers.clone(),
        artifacts: artifacts(config, &content),
        images: ImageStore::new(&config.content_store.containerd_address),
        content,
        index_notes: root.join("soci/images"),
        profiles: root.join("soci/profiles"),
        unpacker,
        fetcher: fetcher.clone(),
        pool: pool.clone(),
        keeper: inherited.keeper,
        held: inherited.connections,
        meters: meters.clone(),
        config: soci_lazy::LazyConfig {
            userxattr,
            ..settings::lazy(config)
        },
    };
    let lazy = LazyLayers::new(components).context("cannot adopt what an earlier daemon left")?;
    let lower = lazy.clone();
    let eager = EagerConfig {
        mode: settings::eager_mode(config),
        pull: settings::pulls(config, client.clone(), &pipeline, root, userxattr),
        lower: Arc::new(move |parents| lower.lower_layers(parents)),
        meters: meters.clone(),
    };
    let eager = EagerLayers::new(lazy.clone(), eager);
    tokio::spawn(hold_filling_during_pulls(
        Arc::downgrade(&eager),
        Arc::downgrade(&fetcher),
    ));
    let snapshots = SnapshotterConfig {
        root: root.join("snapshotter"),
        require_all_mounts: config.holder.require_all_mounts,
        restore_patience: RESTORE_PATIENCE,
        userxattr,
    };
    let snapshotter = Snapshotter::open(snapshots, eager.clone())
        .await
        .context("cannot open the snapshots of earlier runs")?;
    let snapshotter = Arc::new(snapshotter);
    v015_cleanup::remove_caches(root);
    let unused = forget_unused(snapshotter.clone(), lazy.clone(), credentials.cri);
    tokio::spawn(unused);
    Ok(Subsystems {
        snapshotter,
        lazy,
        eager,
        pipeline,
        client,
        image_service: credentials.image_service,
        fetcher,
        pool,
        journal: inherited.journal,
        store: layers,
        meters,
        keeper,
    })
}

/// Makes the fetcher, and logs when it fills images.
fn fetcher(config: &Config) -> Arc<SpanFetcher> {
    let fetch = settings::fetch(config);
    tracing::info!(
        disabled = fetch.background.disable,
        "constructing background fetcher"
    );
    if let Some(silence) = fetch.background.silence_period {
        tracing::info!(
            silence_period_msec = silence.as_millis(),
            "images are filled after a silence that the configuration sets; without the key it begins when a start is over"
        );
    }
    SpanFetcher::new(fetch, Handle::current())
}

/// Makes the unpacker, which leaves the network to readers and uses the zTOCs of the layer store.
fn unpacker(
    root: &Path,
    config: &Config,
    client: Client,
    readers: Weak<SpanFetcher>,
) -> anyhow::Result<Unpacker> {
    let mut unpack = settings::unpack(config, root.join("unpack"));
    unpack.pipeline.demand = Some(soci_unpack::Demand::new(move || {
        readers
            .upgrade()
            .is_some_and(|readers| readers.demand_waits())
    }));
    let ztocs = StoredZtocs::below(root);
    unpack.pipeline.checkpoints = Some(soci_unpack::StoredCheckpoints::new(move |layer| {
        ztocs.entry_points(layer)
    }));
    Ok(Unpacker::new(client, unpack)?)
}

/// Ends what no snapshot of an earlier run has requested once all are restored: it only takes room.
async fn forget_unused(
    snapshotter: Arc<Snapshotter>,
    lazy: Arc<LazyLayers>,
    cri: Option<CriKeychain>,
) {
    snapshotter.restored().await;
    lazy.serve_rest().await;
    lazy.sweep().await;
    if let Some(keychain) = cri {
        credentials::forget_unneeded(keychain, lazy).await;
    }
}

/// Makes filling wait for the end of eager pulls, for which clients wait.
async fn hold_filling_during_pulls(pulls: Weak<EagerLayers>, fetcher: Weak<SpanFetcher>) {
    loop {
        tokio::time::sleep(LOOK_FOR_PULLS).await;
        let (Some(pulls), Some(fetcher)) = (pulls.upgrade(), fetcher.upgrade()) else {
            return;
        };
        if !pulls.progress().is_empty() {
            fetcher.note_use();
        }
    }
}

/// The place where SOCI indexes and zTOCs are looked up before the registry.
fn artifacts(config: &Config, own: &OciLayout) -> Artifacts {
    match config.content_store.kind {
        soci_config::ContentStoreType::Containerd => {
            Artifacts::containerd(&config.content_store.containerd_address)
        }
        _ => Artifacts::Layout(own.clone()),
    }
}

/// Logs once, at the end, what was fetched and why.
fn log_fetched(stats: &soci_fetch::Stats) {
    tracing::info!(
        demand = stats.demand.bytes,
        readahead = stats.readahead.bytes,
        profile = stats.profile.bytes,
        background = stats.background.bytes,
        "bytes fetched from registries since the start"
    );
}
