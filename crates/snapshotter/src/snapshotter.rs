//! The snapshotter itself: what it holds, how it is opened and closed, and how calls run their
//! blocking work.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, Notify, OwnedRwLockReadGuard, RwLock};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::directories::Directories;
use crate::error::SnapshotterError;
use crate::keyed_lock::KeyedLocks;
use crate::layers::LayerCounts;
use crate::lowers::Comparisons;
use crate::metadata::Metadata;
use crate::mounts::OverlayOptions;
use crate::place::Place;
use crate::refusals::Refusals;
use crate::severed::SeveredSnapshots;
use crate::takeover;
use soci_layer::{LayerProvider, LayerRefusal};

/// Unmounting or mounting this many layers at once at the start and the end.
pub(crate) const CONCURRENT_MOUNTS: usize = 16;

/// How long a close waits for calls that are under way.
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);

/// How a snapshotter is opened.
#[derive(Debug, Clone, Default)]
pub struct SnapshotterConfig {
    /// The directory that holds `metadata.redb` and `snapshots/`: `<daemon root>/snapshotter`.
    /// Absolute; made if it does not exist.
    pub root: PathBuf,
    /// Start even if a lazy layer cannot be mounted again; snapshots on top of it then fail.
    pub allow_invalid_mounts_on_restart: bool,
    /// Overlays are mounted with `userxattr`; see [`needs_userxattr`](crate::needs_userxattr).
    pub userxattr: bool,
}

/// Keeps snapshots: their metadata, their directories, and (through a [`LayerProvider`]) the
/// mounts of lazy layers. Dropping it stops its background work and leaves the mounts.
pub struct Snapshotter {
    pub(crate) inner: Arc<Inner>,
    sweeper: Mutex<Option<JoinHandle<()>>>,
}

/// What calls and background work share.
pub(crate) struct Inner {
    pub(crate) directories: Directories,
    pub(crate) overlay: OverlayOptions,
    pub(crate) metadata: Metadata,
    pub(crate) provider: Arc<dyn LayerProvider>,
    /// One Prepare at a time per target.
    pub(crate) targets: KeyedLocks,
    /// One attempt at a time to mount a broken layer again, by the name of its snapshot.
    pub(crate) repairs: KeyedLocks,
    /// Wakes the sweeper.
    pub(crate) removed: Notify,
    /// One sweep at a time.
    pub(crate) sweeping: AsyncMutex<()>,
    /// Lazy snapshots that could not be mounted again at the start, and why.
    pub(crate) broken: Mutex<HashMap<Place, LayerRefusal>>,
    /// Views that exist for a comparison.
    pub(crate) comparisons: Comparisons,
    /// Containers whose layers were lost under them.
    pub(crate) severed: SeveredSnapshots,
    /// Why layers were not mounted lazily since the start.
    pub(crate) refusals: Refusals,
    /// How many layers there were when the metadata was looked at last.
    pub(crate) layer_counts: Mutex<Option<(u64, LayerCounts)>>,
    /// Directories with lower ids are not ours.
    pub(crate) first_id: u64,
    next_id: AtomicU64,
    /// Ids whose directories may exist before, or without, their metadata.
    in_flight: Mutex<HashSet<u64>>,
    closed: AtomicBool,
    /// Ends long work when the snapshotter is closed.
    pub(crate) closing: CancellationToken,
    /// Held for reading by each call, for writing by the close.
    calls: Arc<RwLock<()>>,
}

/// An id for a snapshot that is being made; the sweep spares its directory until this is dropped.
pub(crate) struct Reservation {
    pub(crate) id: u64,
    inner: Arc<Inner>,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.inner.in_flight.lock().remove(&self.id);
    }
}

impl Snapshotter {
    /// Opens the metadata, mounts the lazy layers again, and starts to clear away directories
    /// that belong to no snapshot. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// The directory or the database cannot be used; or a lazy layer cannot be mounted and
    /// `allow_invalid_mounts_on_restart` is off.
    pub async fn open(
        config: SnapshotterConfig,
        provider: Arc<dyn LayerProvider>,
    ) -> Result<Self, SnapshotterError> {
        let allow_invalid = config.allow_invalid_mounts_on_restart;
        let inner = spawn_blocking(move || Inner::open(&config, provider)).await?;
        let inner = Arc::new(inner);
        inner.restore(allow_invalid).await?;
        let sweeper = tokio::spawn(Inner::sweep_in_background(Arc::downgrade(&inner)));
        inner.removed.notify_one();
        Ok(Self {
            inner,
            sweeper: Mutex::new(Some(sweeper)),
        })
    }

    /// Refuses further calls and waits (a limited time) for those under way. With `unmount_all`
    /// the lazy layers are unmounted; without, they stay for the next process. May be called more
    /// than once.
    pub async fn close(&self, unmount_all: bool) {
        self.inner.closed.store(true, Ordering::Release);
        self.inner.closing.cancel();
        let sweeper = self.sweeper.lock().take();
        if let Some(sweeper) = sweeper {
            sweeper.abort();
            // Ends with "cancelled", as it was told.
            let _ = sweeper.await;
        }
        let all_done = self.inner.calls.write();
        if tokio::time::timeout(CLOSE_PATIENCE, all_done)
            .await
            .is_err()
        {
            tracing::warn!("closing although calls to the snapshotter are still under way");
        }
        if unmount_all {
            self.inner.unmount_all().await;
        }
    }
}

impl Drop for Snapshotter {
    fn drop(&mut self) {
        if let Some(sweeper) = self.sweeper.get_mut() {
            sweeper.abort();
        }
    }
}

impl Inner {
    fn open(
        config: &SnapshotterConfig,
        provider: Arc<dyn LayerProvider>,
    ) -> Result<Self, SnapshotterError> {
        let root = config.root.as_path();
        let directories = Directories::open(root)?;
        let metadata = takeover::open_metadata(root, directories.real())?;
        let places = directories.places()?.into_iter();
        let highest = places.map(Place::snapshot).max().unwrap_or(0);
        // A crash can leave a directory with an id that the metadata has not seen.
        let unused = metadata.next_id()?.max(highest.saturating_add(1));
        let first_id = metadata.claim_ids(unused)?;
        Ok(Self {
            overlay: OverlayOptions::detect(config.userxattr),
            directories,
            metadata,
            provider,
            targets: KeyedLocks::default(),
            repairs: KeyedLocks::default(),
            removed: Notify::new(),
            sweeping: AsyncMutex::new(()),
            broken: Mutex::default(),
            comparisons: Comparisons::default(),
            severed: SeveredSnapshots::open(root),
            refusals: Refusals::default(),
            layer_counts: Mutex::default(),
            first_id,
            next_id: AtomicU64::new(unused),
            in_flight: Mutex::default(),
            closed: AtomicBool::new(false),
            closing: CancellationToken::new(),
            calls: Arc::default(),
        })
    }

    /// Entry of every call; the close waits until what this returns is dropped.
    pub(crate) fn enter(&self) -> Result<OwnedRwLockReadGuard<()>, SnapshotterError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(SnapshotterError::Closed);
        }
        Arc::clone(&self.calls)
            .try_read_owned()
            .map_err(|_| SnapshotterError::Closed)
    }

    /// An id that no snapshot ever had.
    pub(crate) fn reserve(self: &Arc<Self>) -> Reservation {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.in_flight.lock().insert(id);
        Reservation {
            id,
            inner: Arc::clone(self),
        }
    }

    /// The ids reserved now.
    pub(crate) fn in_flight(&self) -> HashSet<u64> {
        self.in_flight.lock().clone()
    }

    /// Runs work that waits for the disk. It goes on to its end even if the caller goes away.
    pub(crate) async fn blocking<R: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Arc<Self>) -> Result<R, SnapshotterError> + Send + 'static,
    ) -> Result<R, SnapshotterError> {
        let inner = Arc::clone(self);
        spawn_blocking(move || work(&inner)).await
    }

    async fn unmount_all(self: &Arc<Self>) {
        let lazy = match self.blocking(|inner| inner.lazy_mounts()).await {
            Ok(lazy) => lazy,
            Err(error) => {
                tracing::error!(%error, "cannot unmount the lazy snapshots");
                return;
            }
        };
        let unmounts = lazy.into_iter().map(|mount| async move {
            let mountpoint = self.directories.fs(mount.place);
            if let Err(error) = self.provider.unmount(&mountpoint).await {
                tracing::warn!(name = mount.name, %error, "cannot unmount a lazy snapshot");
            }
        });
        stream::iter(unmounts)
            .for_each_concurrent(CONCURRENT_MOUNTS, |unmount| unmount)
            .await;
    }
}

async fn spawn_blocking<R: Send + 'static>(
    work: impl FnOnce() -> Result<R, SnapshotterError> + Send + 'static,
) -> Result<R, SnapshotterError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(SnapshotterError::task)?
}
