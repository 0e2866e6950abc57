//! The snapshotter: its parts, how it is opened and closed, and what it reports about itself.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::call_gate::CallGate;
use crate::error::SnapshotterError;
use crate::layer_mounts::LayerMounts;
use crate::layer_states::{self, CountCache, LayerCounts, LayerState};
use crate::layer_uses;
use crate::lost_mounts::{LostMounts, Severed};
use crate::prepare::LayerPreparer;
use crate::preparing::Preparing;
use crate::removals::Removals;
use crate::restore::{self, Restores};
use crate::store::SnapshotStore;
use crate::sweep::Sweeper;
use soci_layer::LayerProvider;

/// How long a close waits for calls that are under way.
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);

/// How a snapshotter is opened.
#[derive(Debug, Clone, Default)]
pub struct SnapshotterConfig {
    /// The directory of `metadata.redb` and `snapshots/`: `<daemon root>/snapshotter`. Absolute;
    /// created if it does not exist.
    pub root: PathBuf,
    /// Do not open if a lazy layer cannot be mounted again. Without this, snapshots on top of it fail until
    /// it can.
    pub require_all_mounts: bool,
    /// How long opening waits for lazy layers to be mounted again. What takes longer is completed in the
    /// background, and snapshots on top of it wait.
    pub restore_patience: Duration,
    /// Overlays are mounted with `userxattr`; see [`needs_userxattr`](crate::needs_userxattr).
    pub userxattr: bool,
}

/// Keeps snapshots: their metadata, their directories, and (through a [`LayerProvider`]) the
/// mounts of lazy layers. Dropping it stops its background work and leaves the mounts.
pub struct Snapshotter {
    pub(crate) store: Arc<SnapshotStore>,
    pub(crate) layer_mounts: Arc<LayerMounts>,
    pub(crate) preparer: Arc<LayerPreparer>,
    pub(crate) preparing: Preparing,
    pub(crate) sweeper: Arc<Sweeper>,
    pub(crate) lost: Arc<LostMounts>,
    pub(crate) calls: CallGate,
    layer_counts: CountCache,
    background: Mutex<Vec<JoinHandle<()>>>,
    /// Completed when every lazy layer has been mounted again or was given up.
    restored: CancellationToken,
}

impl Snapshotter {
    /// Opens the metadata, mounts the lazy layers again, and starts to delete directories that belong
    /// to no snapshot. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// The directory or the database cannot be used; or a lazy layer cannot be mounted and
    /// `require_all_mounts` is set.
    pub async fn open(
        config: SnapshotterConfig,
        provider: Arc<dyn LayerProvider>,
    ) -> Result<Self, SnapshotterError> {
        let (require_all, patience) = (config.require_all_mounts, config.restore_patience);
        let opened = soci_task::blocking(move || -> Result<_, SnapshotterError> {
            let store = SnapshotStore::open(&config.root, config.userxattr)?;
            let removals = Removals::open(&config.root);
            Ok((store, LostMounts::open(&config.root), removals))
        });
        let (store, lost, removals) = opened.await?;
        let (store, lost) = (Arc::new(store), Arc::new(lost));
        let mounts = Arc::new(LayerMounts::new(Arc::clone(&store), provider));
        let restores = Restores::new(Arc::clone(&mounts), Arc::clone(&lost));
        let (restores, restored) = (Arc::new(restores), CancellationToken::new());
        let restoring = restore(&restores, &restored, require_all, patience).await?;
        let calls = CallGate::default();
        let sweeper = Arc::new(Sweeper::new(Arc::clone(&mounts), removals));
        let background = tokio::spawn(Arc::clone(&sweeper).run());
        let uses = tokio::spawn(layer_uses::run(Arc::clone(&mounts)));
        store.removed.notify_one();
        Ok(Self {
            preparer: Arc::new(LayerPreparer::new(Arc::clone(&mounts), calls.closing())),
            preparing: Preparing::default(),
            store,
            layer_mounts: mounts,
            sweeper,
            lost,
            calls,
            layer_counts: CountCache::default(),
            background: Mutex::new(restoring.into_iter().chain([background, uses]).collect()),
            restored,
        })
    }

    /// Waits until every lazy layer of earlier runs has been mounted again or was given up.
    pub async fn restored(&self) {
        self.restored.cancelled().await;
    }

    /// Refuses further calls and waits (a limited time) for those under way. With `unmount_all`
    /// the lazy layers are unmounted; without, they stay for the next process. May be called more
    /// than once.
    pub async fn close(&self, unmount_all: bool) {
        self.calls.close();
        let background = std::mem::take(&mut *self.background.lock());
        for background in background {
            background.abort();
            // The error says that it was aborted.
            let _ = background.await;
        }
        if !self.calls.drain(CLOSE_PATIENCE).await {
            tracing::warn!("closing although calls to the snapshotter are still under way");
        }
        if unmount_all {
            restore::unmount_all(&self.layer_mounts).await;
        }
    }

    /// Lists the image layers that exist now.
    ///
    /// # Errors
    /// The metadata cannot be read, or the snapshotter is closed.
    pub async fn layers(&self) -> Result<Vec<LayerState>, SnapshotterError> {
        let _call = self.calls.enter()?;
        layer_states::layers(&self.layer_mounts).await
    }

    /// Counts the image layers that exist now. Reads the metadata only if it has changed.
    ///
    /// # Errors
    /// As [`Snapshotter::layers`].
    pub async fn layer_counts(&self) -> Result<LayerCounts, SnapshotterError> {
        if let Some(counts) = self.layer_counts.current(&self.store) {
            return Ok(counts);
        }
        let _call = self.calls.enter()?;
        self.layer_counts.update(&self.store).await
    }

    /// Returns the number of lazy layers that could not be mounted again, at the start or since.
    #[must_use]
    pub fn broken_layers(&self) -> u64 {
        self.layer_mounts.broken_count() as u64
    }

    /// Returns how often a layer was refused since the start, for every code of
    /// [`LayerRefusal`](soci_layer::LayerRefusal).
    #[must_use]
    pub fn refusals(&self) -> Vec<(&'static str, u64)> {
        self.preparer.refusals.get()
    }

    /// Lists the containers that must be restarted because their layers were lost, by the id of
    /// their snapshot.
    ///
    /// # Errors
    /// The metadata cannot be read, or the snapshotter is closed.
    pub async fn severed(&self) -> Result<Vec<(u64, Severed)>, SnapshotterError> {
        let _call = self.calls.enter()?;
        let lost = Arc::clone(&self.lost);
        self.store
            .blocking(move |store| Ok(lost.existing(&store.metadata)?))
            .await
    }
}

/// Restores the mounts of earlier runs. What is not done within `patience` continues in the returned task.
async fn restore(
    restores: &Arc<Restores>,
    restored: &CancellationToken,
    require_all: bool,
    patience: Duration,
) -> Result<Option<JoinHandle<()>>, SnapshotterError> {
    let recorded = restores.begin().await?;
    if require_all {
        restores.run_strictly(recorded).await?;
        restores.record_lost().await?;
        restored.cancel();
        return Ok(None);
    }
    let count = recorded.len();
    let (running, done) = (Arc::clone(restores), restored.clone());
    let mut task = tokio::spawn(async move {
        running.run(recorded).await;
        done.cancel();
    });
    let waited = tokio::time::timeout(patience, &mut task).await;
    restores.record_lost().await?;
    if waited.is_ok() {
        return Ok(None);
    }
    tracing::warn!(
        restored = restores.restored(),
        of = count,
        "lazy snapshots of an earlier run are still being restored; containers that need them wait"
    );
    Ok(Some(task))
}

impl Drop for Snapshotter {
    fn drop(&mut self) {
        for background in self.background.get_mut() {
            background.abort();
        }
    }
}
