//! (API first, bodies follow)

use std::path::PathBuf;
use std::sync::Arc;

use crate::api::v1::snapshots_server::SnapshotsServer;
use crate::provider::LayerProvider;
use crate::service::SnapshotService;

/// How a snapshotter is opened.
#[derive(Debug, Clone)]
pub struct SnapshotterConfig {
    /// The directory that holds `metadata.redb` and `snapshots/`: `<daemon root>/snapshotter`.
    pub root: PathBuf,
    /// Start even if a lazy layer cannot be mounted again; snapshots on top of it then fail.
    pub allow_invalid_mounts_on_restart: bool,
}

/// Error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotterError {}

/// The snapshotter.
pub struct Snapshotter {}

impl Snapshotter {
    /// Opens.
    pub async fn open(
        _config: SnapshotterConfig,
        _provider: Arc<dyn LayerProvider>,
    ) -> Result<Self, SnapshotterError> {
        todo!("body follows")
    }
    /// Closes.
    pub async fn close(&self, _unmount_all: bool) {
        todo!("body follows")
    }
}

/// The tonic service.
pub fn service(snapshotter: Arc<Snapshotter>) -> SnapshotsServer<SnapshotService> {
    SnapshotsServer::new(SnapshotService { snapshotter })
}
