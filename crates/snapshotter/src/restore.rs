//! Restoring the mounts of lazy layers at the start, and unmounting them at the end.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;

use crate::api::v1::Kind;
use crate::directories::read_mountinfo;
use crate::error::SnapshotterError;
use crate::layer_mounts::{CONCURRENT_MOUNTS, LayerMounts};
use crate::lowerdirs::{LazyMount, LowerDirs};
use crate::snapshot_dir::SnapshotDir;
use crate::store::SnapshotStore;
use soci_layer::{Restoration, View};

/// Restores all recorded mounts, several at a time, and returns those whose connections were lost.
///
/// With `allow_invalid` a failure is only logged; the mount is tried again when a snapshot on top of
/// it is requested.
pub(crate) async fn restore_all(
    mounts: &LayerMounts,
    allow_invalid: bool,
) -> Result<HashSet<SnapshotDir>, SnapshotterError> {
    let recorded = mounts.store.blocking(prepare_mountpoints).await?;
    let count = recorded.len();
    let (adopted, lost) = &(AtomicUsize::new(0), Mutex::new(HashSet::new()));
    let restores = recorded.into_iter().map(|mount| async move {
        match mounts.restore(&mount).await {
            Ok(Restoration::Adopted) => drop(adopted.fetch_add(1, Ordering::Relaxed)),
            Ok(Restoration::Severed) => drop(lost.lock().insert(mount.dir)),
            Ok(Restoration::Remounted) => {}
            Err(refusal) if allow_invalid => {
                tracing::warn!(
                    name = mount.name,
                    reason = refusal.code(),
                    error = %soci_errors::chain(&refusal),
                    "cannot restore a lazy snapshot; no container can start on it until that succeeds"
                );
                mounts.set_broken(mount.dir, refusal);
            }
            Err(source) => {
                let name = mount.name;
                return Err(SnapshotterError::Restore { name, source });
            }
        }
        Ok(())
    });
    stream::iter(restores)
        .buffer_unordered(CONCURRENT_MOUNTS)
        .try_collect::<()>()
        .await?;
    let failed = mounts.broken_count();
    if count > 0 {
        let adopted = adopted.load(Ordering::Relaxed);
        tracing::info!(
            mounted = count.saturating_sub(failed).saturating_sub(adopted),
            continued = adopted,
            failed,
            "restored the lazy snapshots of an earlier run"
        );
    }
    Ok(std::mem::take(&mut *lost.lock()))
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
        .map(|(id, name, lazy)| LazyMount {
            dir: SnapshotDir::Snapshot(id),
            name,
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
