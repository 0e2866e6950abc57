//! From the configuration to the subsystems, and from the subsystems to a snapshotter.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use config::Config;
use fetch::SpanFetcher;
use lazy::LazyLayers;
use registry::{Client, DockerConfigCredentials};
use snapshotter::{Snapshotter, SnapshotterConfig};
use store::content::OciLayout;
use store::{LayerStore, RootLock};
use tokio::runtime::Handle;

use crate::settings;
use crate::signals::Stop;

/// How long threads that serve file systems may take to end.
const PATIENCE: Duration = Duration::from_secs(2);

/// The running subsystems, to be ended in order.
pub(crate) struct Running {
    pub(crate) snapshotter: Arc<Snapshotter>,
    pub(crate) lazy: Arc<LazyLayers>,
    pub(crate) fetcher: Arc<SpanFetcher>,
    pub(crate) pool: fuse::Pool,
    pub(crate) store: LayerStore,
    pub(crate) meters: Arc<telemetry::Meters>,
}

impl Running {
    /// Ends the work behind the service; after [`Stop::Clean`] no layer is mounted. What was
    /// fetched stays in both cases.
    pub(crate) async fn close(self, stop: Stop) {
        self.lazy.leave();
        self.snapshotter.close(stop == Stop::Clean).await;
        self.fetcher.shutdown().await;
        log_fetched(&self.fetcher.stats());
        self.lazy.flush().await;
        let pool = self.pool;
        let joined = tokio::task::spawn_blocking(move || pool.shutdown());
        if tokio::time::timeout(PATIENCE, joined).await.is_err() {
            tracing::warn!("a thread that serves file systems does not end: it is left behind");
        }
    }
}

/// Makes the root folder if need be and keeps other daemons away from it.
pub(crate) fn lock_root(root: &Path) -> anyhow::Result<RootLock> {
    RootLock::acquire(root).context("the folder given by --root cannot be used")
}

/// Builds everything below the gRPC service, and mounts the layers of an earlier run again.
pub(crate) async fn wire(root: &Path, config: &Config) -> anyhow::Result<Running> {
    let credentials = Arc::new(DockerConfigCredentials::new());
    let client = Client::new(settings::client(config), credentials)?;
    let layers = LayerStore::open(&root.join("soci/layers"), settings::layer_store(config))?;
    let content = OciLayout::open(&root.join("content"))?;

    let fetch = settings::fetch(config);
    tracing::info!(
        disabled = fetch.background.disable,
        "constructing background fetcher"
    );
    let fetcher = SpanFetcher::new(fetch, Handle::current());
    // They wait for the disk now and then, never for the network.
    let threads = std::thread::available_parallelism().map_or(4, |cores| cores.get().clamp(4, 16));
    let pool =
        fuse::Pool::new(threads).context("cannot start the threads that serve file systems")?;

    let meters = Arc::new(telemetry::Meters::new()?);
    let parts = lazy::Parts {
        client,
        layers: layers.clone(),
        content,
        fetcher: fetcher.clone(),
        pool: pool.clone(),
        meters: meters.clone(),
        config: settings::lazy(config),
    };
    let lazy = LazyLayers::new(parts, root.join("soci/images"));
    let snapshots = SnapshotterConfig {
        root: root.join("snapshotter"),
        allow_invalid_mounts_on_restart: config.snapshotter.allow_invalid_mounts_on_restart,
    };
    let snapshotter = Snapshotter::open(snapshots, lazy.clone())
        .await
        .context("cannot open the snapshots of earlier runs")?;
    // Every layer that a snapshot uses has been asked for by now; the rest only takes room.
    let sweeping = lazy.clone();
    tokio::spawn(async move { sweeping.sweep().await });
    Ok(Running {
        snapshotter: Arc::new(snapshotter),
        lazy,
        fetcher,
        pool,
        store: layers,
        meters,
    })
}

/// Says once, at the end, what the registry was asked for and why.
fn log_fetched(stats: &fetch::Stats) {
    tracing::info!(
        demand = stats.demand.bytes,
        readahead = stats.readahead.bytes,
        profile = stats.profile.bytes,
        background = stats.background.bytes,
        "bytes fetched from registries since the start"
    );
}
