//! Restoring the mounts of lazy layers at the start, and unmounting them at the end.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::api::v1::Kind;
use crate::directories::read_mountinfo;
use crate::error::SnapshotterError;
use crate::layer_mounts::{CONCURRENT_MOUNTS, LayerMounts};
use crate::lost_mounts::LostMounts;
use crate::lowerdirs::{LazyMount, LowerDirs};
use crate::snapshot_dir::SnapshotDir;
use crate::store::SnapshotStore;
use soci_layer::{LayerRefusal, Restoration, View};

/// Time after which a restore does not count among [`CONCURRENT_MOUNTS`] any more: it waits for something
/// else than this machine.
const SLOW: Duration = Duration::from_secs(2);

/// The restores of an opening.
pub(crate) struct Restores {
    mounts: Arc<LayerMounts>,
    lost_mounts: Arc<LostMounts>,
    slots: Semaphore,
    adopted: AtomicUsize,
    restored: AtomicUsize,
    /// Mounts whose connections were lost, to be recorded.
    lost: Mutex<HashSet<SnapshotDir>>,
    /// The opening has recorded what was lost until then.
    serving: AtomicBool,
}

impl Restores {
    pub(crate) fn new(mounts: Arc<LayerMounts>, lost_mounts: Arc<LostMounts>) -> Self {
        Self {
            mounts,
            lost_mounts,
            slots: Semaphore::new(CONCURRENT_MOUNTS),
            adopted: AtomicUsize::new(0),
            restored: AtomicUsize::new(0),
            lost: Mutex::default(),
            serving: AtomicBool::new(false),
        }
    }

    /// Returns the recorded mounts, marked as not restored yet: a container that needs one waits for it.
    pub(crate) async fn begin(&self) -> Result<Vec<LazyMount>, SnapshotterError> {
        let recorded = self.mounts.store.blocking(prepare_mountpoints).await?;
        for mount in &recorded {
            let refusal = LayerRefusal::failed("it is being restored after the start");
            self.mounts.set_broken(mount.dir, refusal);
        }
        Ok(recorded)
    }

    /// Restores all mounts, several at a time. One that fails is logged and tried again when a snapshot on
    /// top of it is requested.
    pub(crate) async fn run(&self, recorded: Vec<LazyMount>) {
        let count = recorded.len();
        let mut failed = 0;
        let mut restores: stream::FuturesUnordered<_> =
            recorded.into_iter().map(|mount| self.one(mount)).collect();
        while let Some((mount, outcome)) = restores.next().await {
            if let Err(refusal) = outcome {
                failed += 1;
                tracing::warn!(
                    name = mount.name,
                    reason = refusal.code(),
                    error = %soci_errors::chain(&refusal),
                    "cannot restore a lazy snapshot; no container can start on it until that succeeds"
                );
            }
        }
        self.log(count, failed);
    }

    /// Restores all mounts, several at a time; the first that fails ends that.
    pub(crate) async fn run_strictly(
        &self,
        recorded: Vec<LazyMount>,
    ) -> Result<(), SnapshotterError> {
        let count = recorded.len();
        let restores = recorded.into_iter().map(|mount| async {
            let (mount, outcome) = self.one(mount).await;
            outcome.map_err(|source| SnapshotterError::Restore {
                name: mount.name,
                source,
            })
        });
        stream::iter(restores)
            .buffer_unordered(CONCURRENT_MOUNTS)
            .try_collect::<()>()
            .await?;
        self.log(count, 0);
        Ok(())
    }

    async fn one(&self, mount: LazyMount) -> (LazyMount, Result<(), LayerRefusal>) {
        let restored = async {
            let slot = self.slots.acquire().await;
            let mut restore = Box::pin(self.mounts.restore_first(&mount));
            match tokio::time::timeout(SLOW, &mut restore).await {
                Ok(restored) => restored,
                Err(_) => {
                    drop(slot);
                    restore.await
                }
            }
        };
        let outcome = match restored.await {
            Ok(how) => {
                self.restored.fetch_add(1, Ordering::Relaxed);
                self.count(mount.dir, how).await;
                Ok(())
            }
            Err(refusal) => Err(refusal),
        };
        (mount, outcome)
    }

    async fn count(&self, dir: SnapshotDir, how: Option<Restoration>) {
        match how {
            Some(Restoration::Adopted) => drop(self.adopted.fetch_add(1, Ordering::Relaxed)),
            Some(Restoration::Severed) => {
                self.lost.lock().insert(dir);
                if self.serving.load(Ordering::Acquire)
                    && let Err(error) = self.record_lost().await
                {
                    let error = soci_errors::chain(&error);
                    tracing::warn!(error, "cannot record the containers of a lost layer");
                }
            }
            Some(Restoration::Remounted) | None => {}
        }
    }

    /// Records which containers were on mounts whose connections were lost. Later ones are recorded when they
    /// are noticed.
    pub(crate) async fn record_lost(&self) -> Result<(), SnapshotterError> {
        self.serving.store(true, Ordering::Release);
        let (lost_mounts, lost) = (
            Arc::clone(&self.lost_mounts),
            std::mem::take(&mut *self.lost.lock()),
        );
        let store = &self.mounts.store;
        store
            .blocking(move |store| Ok(lost_mounts.record(&store.metadata, &lost)?))
            .await
    }

    /// Number of mounts that were restored by now.
    pub(crate) fn restored(&self) -> usize {
        self.restored.load(Ordering::Relaxed)
    }

    fn log(&self, count: usize, failed: usize) {
        if count > 0 {
            let adopted = self.adopted.load(Ordering::Relaxed);
            tracing::info!(
                mounted = count.saturating_sub(failed).saturating_sub(adopted),
                continued = adopted,
                failed,
                "restored the lazy snapshots of an earlier run"
            );
        }
    }
}

/// Unmounts all recorded mounts. Failures are logged.
pub(crate) async fn unmount_all(mounts: &LayerMounts) {
    let recorded = match mounts.store.blocking(recorded_mounts).await {
        Ok(recorded) => recorded,
        Err(error) => {
            let error = soci_errors::chain(&error);
            tracing::error!(error, "cannot unmount the lazy snapshots");
            return;
        }
    };
    let unmounts = recorded.into_iter().map(|mount| async move {
        if let Err(error) = mounts.unmount(mount.dir).await {
            let error = soci_errors::chain(&error);
            tracing::warn!(name = mount.name, error, "cannot unmount a lazy snapshot");
        }
    });
    stream::iter(unmounts)
        .for_each_concurrent(CONCURRENT_MOUNTS, |unmount| unmount)
        .await;
}

/// Returns the recorded mounts after creating missing mount points. A mount point in use is not
/// accessed: the mount may be dead. Blocking.
fn prepare_mountpoints(store: &SnapshotStore) -> Result<Vec<LazyMount>, SnapshotterError> {
    let recorded = recorded_mounts(store)?;
    if !recorded.is_empty() {
        let table = read_mountinfo()?;
        let points = table.points();
        for LazyMount { dir, .. } in &recorded {
            if !points.any_under(&store.directories.real_snapshot(*dir)) {
                store.directories.ensure_mountpoint(*dir)?;
            }
        }
    }
    Ok(recorded)
}

/// Returns all mounts that the metadata and the directories record, and registers the views among
/// their snapshots that are for a comparison. Blocking.
fn recorded_mounts(store: &SnapshotStore) -> Result<Vec<LazyMount>, SnapshotterError> {
    let lazy = store.metadata.lazy()?.into_iter();
    let mut mounts: Vec<LazyMount> = lazy
        .map(|(record, lazy)| LazyMount {
            dir: SnapshotDir::Snapshot(record.id),
            name: record.info.name,
            parent: Some(record.info.parent),
            lazy,
            view: View::default(),
        })
        .collect();
    let dirs = store.directories.list()?.into_iter();
    let compared: HashSet<u64> = dirs
        .filter_map(|dir| match dir {
            SnapshotDir::Compared { snapshot, .. } => Some(snapshot),
            _ => None,
        })
        .collect();
    for snapshot in store.metadata.with_own_lowerdirs(&compared)? {
        let lowerdirs = store.lowerdirs(&snapshot)?;
        if snapshot.record.kind() == Kind::View {
            let parent = &snapshot.record.info.parent;
            store.comparisons.begin(snapshot.record.id, parent);
        }
        if lowerdirs != LowerDirs::Shared {
            mounts.extend(lowerdirs.mounts(&snapshot.parents));
        }
    }
    Ok(mounts)
}
