//! From the configuration to the subsystems, and from the subsystems to a snapshotter. For the
//! moment without lazy layers: every image is pulled the usual way.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use config::Config;
use snapshotter::{
    LayerProvider, LayerRefusal, LayerRequest, MountedInfo, ProviderError, Snapshotter,
    SnapshotterConfig,
};
use store::RootLock;

use crate::signals::Stop;

/// The running subsystems, to be ended in order.
pub(crate) struct Running {
    pub(crate) snapshotter: Arc<Snapshotter>,
}

impl Running {
    /// Ends the work behind the service; with [`Stop::Clean`] no mount is left.
    pub(crate) async fn close(self, stop: Stop) {
        self.snapshotter.close(stop == Stop::Clean).await;
    }
}

/// Makes the root folder if need be and keeps other daemons away from it.
pub(crate) fn lock_root(root: &Path) -> anyhow::Result<RootLock> {
    RootLock::acquire(root).context("choose another folder with --root, or make this one usable")
}

struct NothingLazy;

#[async_trait::async_trait]
impl LayerProvider for NothingLazy {
    async fn mount(&self, _: LayerRequest) -> Result<MountedInfo, LayerRefusal> {
        let reason = "lazy layers are not wired in yet".to_owned();
        Err(LayerRefusal::NoIndex { reason })
    }
    async fn unmount(&self, _: &Path) -> Result<(), ProviderError> {
        Ok(())
    }
    async fn check(&self, _: &Path, _: &BTreeMap<String, String>) -> Result<(), ProviderError> {
        Ok(())
    }
}

/// Builds everything below the gRPC service, and mounts the layers of an earlier run again.
pub(crate) async fn wire(root: &Path, config: &Config) -> anyhow::Result<Running> {
    tracing::info!("constructing background fetcher");
    let snapshots = SnapshotterConfig {
        root: root.join("snapshotter"),
        allow_invalid_mounts_on_restart: config.snapshotter.allow_invalid_mounts_on_restart,
    };
    let snapshotter = Snapshotter::open(snapshots, Arc::new(NothingLazy))
        .await
        .context("cannot open the snapshots of earlier runs")?;
    Ok(Running {
        snapshotter: Arc::new(snapshotter),
    })
}
