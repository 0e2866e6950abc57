//! After a start: every lazy snapshot on record is mounted again, several at a time.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;

use crate::api::v1::Kind;
use crate::directories::Directories;
use crate::error::SnapshotterError;
use crate::lowers::Lowers;
use crate::metadata::LazyRecord;
use crate::place::Place;
use crate::snapshotter::{CONCURRENT_MOUNTS, Inner};
use soci_layer::{LayerRefusal, LayerRequest, ProviderError, Purpose, Restoration, View};

/// A lazy layer where it is, or was, mounted.
#[derive(Debug, Clone)]
pub(crate) struct LazyMount {
    pub(crate) place: Place,
    /// The layer's snapshot.
    pub(crate) name: String,
    pub(crate) lazy: LazyRecord,
    pub(crate) view: View,
}

impl LazyMount {
    pub(crate) fn request(&self, purpose: Purpose, directories: &Directories) -> LayerRequest {
        LayerRequest {
            purpose,
            namespace: self.lazy.namespace.clone(),
            mountpoint: directories.fs(self.place),
            labels: self.lazy.labels.clone(),
            view: self.view.clone(),
        }
    }
}

impl Inner {
    /// All lazy mounts on record. Blocking.
    pub(crate) fn lazy_mounts(&self) -> Result<Vec<LazyMount>, SnapshotterError> {
        let lazy = self.metadata.lazy()?.into_iter();
        let mut mounts: Vec<LazyMount> = lazy
            .map(|(id, name, lazy)| LazyMount {
                place: Place::Snapshot(id),
                name,
                lazy,
                view: View::default(),
            })
            .collect();
        let mut apart = HashSet::new();
        for place in self.directories.places()? {
            if let Place::Compared { snapshot, .. } = place {
                apart.insert(snapshot);
            }
        }
        for snapshot in self.metadata.apart(&apart)? {
            let lowers = self.lowers(&snapshot)?;
            if snapshot.record.kind() == Kind::View {
                let parent = &snapshot.record.info.parent;
                self.comparisons.begin(snapshot.record.id, parent);
            }
            if lowers != Lowers::Shared {
                mounts.extend(
                    snapshot
                        .parents
                        .iter()
                        .filter_map(|link| lowers.mount(link)),
                );
            }
        }
        Ok(mounts)
    }

    /// Mounts the lazy snapshots again. With `allow_invalid` a failure is logged only; it is tried
    /// again when somebody wants the layer.
    pub(crate) async fn restore(
        self: &Arc<Self>,
        allow_invalid: bool,
    ) -> Result<(), SnapshotterError> {
        let lazy = self.blocking(|inner| inner.prepare_mountpoints()).await?;
        let count = lazy.len();
        let (continued, severed) = (AtomicUsize::new(0), Mutex::new(HashSet::new()));
        let (continued, severed) = (&continued, &severed);
        let restores = lazy.into_iter().map(|mount| async move {
            let (place, name) = (mount.place, mount.name.clone());
            match self.restore_one(&mount).await {
                Ok(restored) => {
                    match restored {
                        Restoration::Adopted => drop(continued.fetch_add(1, Ordering::Relaxed)),
                        Restoration::Severed => drop(severed.lock().insert(place)),
                        Restoration::Remounted => {}
                    }
                    Ok(())
                }
                Err(refusal) if allow_invalid => {
                    tracing::warn!(
                        name,
                        reason = refusal.code(),
                        error = %soci_errors::chain(&refusal),
                        "cannot mount a lazy snapshot again; nothing can start on it until that \
                         succeeds"
                    );
                    self.broken.lock().insert(place, refusal);
                    Ok(())
                }
                Err(refusal) => Err(SnapshotterError::Restore {
                    name,
                    reason: soci_errors::chain(&refusal),
                }),
            }
        });
        stream::iter(restores)
            .buffer_unordered(CONCURRENT_MOUNTS)
            .try_collect::<()>()
            .await?;
        let failed = self.broken.lock().len();
        if count > 0 {
            let continued = continued.load(Ordering::Relaxed);
            tracing::info!(
                mounted = count.saturating_sub(failed).saturating_sub(continued),
                continued,
                failed,
                "lazy snapshots of an earlier run are mounted again"
            );
        }
        let severed = std::mem::take(&mut *severed.lock());
        self.blocking(move |inner| inner.sever(&severed)).await?;
        Ok(())
    }

    /// Another attempt for a layer that could not be mounted at the start. Without it a container
    /// would start on the empty directory.
    pub(crate) async fn repair(self: &Arc<Self>, mount: &LazyMount) -> Result<(), ProviderError> {
        let place = mount.place;
        if !self.broken.lock().contains_key(&place) {
            return Ok(());
        }
        let _one_at_a_time = self.repairs.lock(&place.to_string()).await;
        if !self.broken.lock().contains_key(&place) {
            return Ok(());
        }
        match self.restore_one(mount).await {
            Ok(_) => {
                self.broken.lock().remove(&place);
                tracing::info!(
                    name = mount.name,
                    "a lazy snapshot is mounted again after all"
                );
                Ok(())
            }
            Err(refusal) => {
                let error = ProviderError::new(self.directories.fs(place), refusal.clone());
                self.broken.lock().insert(place, refusal);
                Err(error)
            }
        }
    }

    async fn restore_one(self: &Arc<Self>, mount: &LazyMount) -> Result<Restoration, LayerRefusal> {
        let provider = Arc::clone(&self.provider);
        let request = mount.request(Purpose::Restore, &self.directories);
        let restored = tokio::spawn(async move { provider.restore(request).await })
            .await
            .unwrap_or_else(|error| Err(LayerRefusal::failed(error)))?;
        if let Place::Snapshot(id) = mount.place {
            let (lazy, root) = (mount.lazy.clone(), restored.root);
            let recorded =
                self.blocking(move |inner| inner.metadata.set_lazy_root(id, &lazy, root));
            recorded.await.map_err(LayerRefusal::failed)?;
        }
        Ok(restored.how)
    }

    /// The lazy snapshots, their mount points being there. A mount point that something is
    /// mounted on is not touched: the mount may be dead.
    fn prepare_mountpoints(&self) -> Result<Vec<LazyMount>, SnapshotterError> {
        let lazy = self.lazy_mounts()?;
        if !lazy.is_empty() {
            let failed = SnapshotterError::io("read", soci_mountinfo::PATH.as_ref());
            let table = soci_mountinfo::Table::read().map_err(failed)?;
            let mounts = table.points();
            for LazyMount { place, .. } in &lazy {
                if !mounts.any_under(&self.directories.real_snapshot(*place)) {
                    self.directories.ensure_mountpoint(*place)?;
                }
            }
        }
        Ok(lazy)
    }
}
