//! The mounts of lazy layers: made, checked, restored and removed through the provider.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures::future::try_join_all;
use parking_lot::Mutex;
use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::error::SnapshotterError;
use crate::image_layer::ImageLayer;
use crate::labels::Labels;
use crate::lowerdirs::{LazyMount, LowerDirs};
use crate::metadata::Link;
use crate::refusal::RefusalReason;
use crate::snapshot_dir::SnapshotDir;
use crate::store::SnapshotStore;
use soci_layer::{
    Announcement, ChainUse, Interest, LayerProvider, LayerRefusal, LayerRequest, LayerUses,
    MountedInfo, ProviderError, Purpose, Restoration, UnpackOutcome, UnpackRequest, UsedLayer,
};

/// Number of layers that are mounted or unmounted at the same time.
pub(crate) const CONCURRENT_MOUNTS: usize = 16;

/// The mounts of lazy layers in the directories of a store.
pub(crate) struct LayerMounts {
    pub(crate) store: Arc<SnapshotStore>,
    provider: Arc<dyn LayerProvider>,
    /// Mounts that could not be restored, and why.
    broken: Mutex<HashMap<SnapshotDir, LayerRefusal>>,
    /// Mounts that are being restored.
    restoring: Mutex<HashSet<SnapshotDir>>,
    /// Locks for mounts that are made again or for one snapshot alone, by directory.
    pub(crate) locks: soci_task::KeyedLocks<String>,
}

impl LayerMounts {
    pub(crate) fn new(store: Arc<SnapshotStore>, provider: Arc<dyn LayerProvider>) -> Self {
        Self {
            store,
            provider,
            broken: Mutex::default(),
            restoring: Mutex::default(),
            locks: soci_task::KeyedLocks::default(),
        }
    }

    /// Mounts a layer.
    pub(crate) async fn mount(&self, request: LayerRequest) -> Result<MountedInfo, LayerRefusal> {
        let provider = Arc::clone(&self.provider);
        let work = async move { provider.mount(request).await };
        isolated(work, LayerRefusal::failed).await
    }

    /// Notes that the Prepare of an image layer has begun.
    pub(crate) async fn announce(&self, layer: &ImageLayer) -> Option<Interest> {
        let provider = Arc::clone(&self.provider);
        let announcement = Announcement {
            namespace: layer.namespace.clone(),
            labels: layer.labels.clone(),
            committed: Arc::clone(&self.store) as _,
        };
        let work = async move { Ok(provider.announce(announcement).await) };
        isolated(work, LayerRefusal::failed).await.ok()?
    }

    /// Notes that a snapshot was removed.
    pub(crate) fn removed(&self, labels: &Labels) {
        self.provider.removed(labels);
    }

    /// Notes what clients use now.
    pub(crate) fn uses(&self, uses: &LayerUses) {
        self.provider.uses(uses);
    }

    /// Returns the provider, to be asked what a lazy layer takes on disk.
    pub(crate) fn provider(&self) -> Arc<dyn LayerProvider> {
        Arc::clone(&self.provider)
    }

    /// Returns the labels of a Prepare without those that the image set.
    pub(crate) async fn vet_labels(&self, request: &LayerRequest) -> Result<Labels, LayerRefusal> {
        self.provider.vet_labels(request).await
    }

    /// Checks that a client may use a snapshot on these layers. `exists`: it was admitted when it was
    /// made.
    pub(crate) async fn admit(
        &self,
        namespace: Option<String>,
        parents: &[Link],
        exists: bool,
    ) -> Result<(), SnapshotterError> {
        if parents.iter().all(|parent| parent.lazy.is_none()) {
            return Ok(());
        }
        let layers = parents.iter().map(|parent| UsedLayer {
            name: parent.name.clone(),
            mountpoint: parent
                .lazy
                .is_some()
                .then(|| self.store.directories.fs(parent.id)),
        });
        let use_of = ChainUse {
            namespace,
            layers: layers.collect(),
            admitted_before: exists,
        };
        Ok(self.provider.admit(use_of).await?)
    }

    /// Mounts a layer once more, in a new directory of its own.
    pub(crate) async fn mount_second(&self, mount: LazyMount) -> Result<(), SnapshotterError> {
        let dir = mount.dir;
        self.store
            .blocking(move |store| Ok(store.directories.create(dir, false, None)?))
            .await?;
        let request = mount.request(Purpose::SecondView, &self.store.directories);
        let mountpoint = request.mountpoint.clone();
        let mounted = self.mount(request).instrument(mount.span());
        match mounted.await {
            Ok(_) => Ok(()),
            Err(refusal) => Err(SnapshotterError::LayerUnavailable {
                name: mount.name,
                source: ProviderError::new(mountpoint, refusal),
            }),
        }
    }

    /// Unpacks a layer with the provider. After a failure the directory holds anything.
    pub(crate) async fn unpack(
        &self,
        request: UnpackRequest,
        cancel: CancellationToken,
    ) -> Result<UnpackOutcome, LayerRefusal> {
        let provider = Arc::clone(&self.provider);
        let work = async move { provider.unpack(request, cancel).await };
        isolated(work, LayerRefusal::unpack_failed).await
    }

    /// Unmounts the layer in a directory, if one is mounted.
    pub(crate) async fn unmount(&self, dir: SnapshotDir) -> Result<(), ProviderError> {
        let mountpoint = self.store.directories.fs(dir);
        self.provider.unmount(&mountpoint).await
    }

    /// Checks that the lazy ones among the parents of a snapshot can be served. A broken mount is
    /// restored first.
    pub(crate) async fn check(
        &self,
        lowerdirs: &LowerDirs,
        parents: &[Link],
    ) -> Result<(), SnapshotterError> {
        let checks = lowerdirs.mounts(parents).into_iter().map(|mount| async {
            let mountpoint = self.store.directories.fs(mount.dir);
            let check = async {
                self.repair(&mount).await?;
                self.provider.check(&mountpoint, &mount.lazy.labels).await
            };
            let checked = check.await;
            checked.map_err(|source| SnapshotterError::LayerUnavailable {
                name: mount.name,
                source,
            })
        });
        try_join_all(checks).await?;
        Ok(())
    }

    /// Restores a mount for the first time since the start, unless a container that needed it has had that
    /// done (`None`).
    pub(crate) async fn restore_first(
        &self,
        mount: &LazyMount,
    ) -> Result<Option<Restoration>, LayerRefusal> {
        let dir = mount.dir;
        let _one_at_a_time = self.locks.lock(&dir.to_string()).await;
        if !self.broken.lock().contains_key(&dir) {
            return Ok(None);
        }
        let restored = self.restore(mount).await;
        match &restored {
            Ok(_) => drop(self.broken.lock().remove(&dir)),
            Err(refusal) => self.set_broken(dir, refusal.clone()),
        }
        restored.map(Some)
    }

    /// Restores a mount of an earlier process.
    async fn restore(&self, mount: &LazyMount) -> Result<Restoration, LayerRefusal> {
        self.restoring.lock().insert(mount.dir);
        let _restoring = Restoring(self, mount.dir);
        self.restore_now(mount).await
    }

    /// Whether a mount is being restored: its directory must not be removed.
    pub(crate) fn is_restoring(&self, dir: SnapshotDir) -> bool {
        self.restoring.lock().contains(&dir)
    }

    async fn restore_now(&self, mount: &LazyMount) -> Result<Restoration, LayerRefusal> {
        let provider = Arc::clone(&self.provider);
        let request = mount.request(Purpose::Restore, &self.store.directories);
        let work = async move { provider.restore(request).await };
        let restored = isolated(work, LayerRefusal::failed).instrument(mount.span());
        let restored = restored.await?;
        if let SnapshotDir::Snapshot(id) = mount.dir {
            let (lazy, root) = (mount.lazy.clone(), restored.root);
            let recorded = self
                .store
                .blocking(move |store| Ok(store.metadata.set_lazy_root(id, &lazy, root)?));
            recorded.await.map_err(LayerRefusal::failed)?;
        }
        Ok(restored.how)
    }

    /// Restores a mount that could not be restored at the start. Without it a container would start
    /// on the empty directory.
    async fn repair(&self, mount: &LazyMount) -> Result<(), ProviderError> {
        let dir = mount.dir;
        if !self.broken.lock().contains_key(&dir) {
            return Ok(());
        }
        let _one_at_a_time = self.locks.lock(dir.to_string()).await;
        if !self.broken.lock().contains_key(&dir) {
            return Ok(());
        }
        match self.restore(mount).await {
            Ok(_) => {
                self.broken.lock().remove(&dir);
                tracing::info!(
                    name = mount.name,
                    "restored a lazy snapshot after a failure"
                );
                Ok(())
            }
            Err(refusal) => {
                let mountpoint = self.store.directories.fs(dir);
                let error = ProviderError::new(mountpoint, refusal.clone());
                self.broken.lock().insert(dir, refusal);
                Err(error)
            }
        }
    }

    /// Forgets that a mount could not be restored: its snapshot was removed.
    pub(crate) fn forget_broken(&self, dir: SnapshotDir) {
        self.broken.lock().remove(&dir);
    }

    /// Records that a mount could not be restored.
    pub(crate) fn set_broken(&self, dir: SnapshotDir, refusal: LayerRefusal) {
        self.broken.lock().insert(dir, refusal);
    }

    /// Returns why a mount could not be restored, if so.
    pub(crate) fn broken(&self, dir: SnapshotDir) -> Option<RefusalReason> {
        self.broken.lock().get(&dir).map(RefusalReason::from)
    }

    /// Returns the number of mounts that could not be restored.
    pub(crate) fn broken_count(&self) -> usize {
        self.broken.lock().len()
    }

    /// Unmounts and deletes a directory that is not needed.
    pub(crate) async fn discard(&self, dir: SnapshotDir) {
        if let Err(error) = self.unmount(dir).await {
            let error = soci_errors::chain(&error);
            tracing::warn!(error, "cannot unmount a layer that is not needed");
        }
        let removed = self.store.blocking(move |store| {
            if store.is_mounted(dir)? {
                // Left to the sweep: deleting would go into the mount.
                store.removed.notify_one();
                return Ok(());
            }
            Ok(store.directories.remove(dir)?)
        });
        if let Err(error) = removed.await {
            let error = soci_errors::chain(&error);
            tracing::warn!(error, "cannot remove a directory that is not needed");
        }
    }

    /// Unmounts and deletes the directories that were made of these parents for one snapshot alone.
    pub(crate) async fn discard_own(&self, lowerdirs: &LowerDirs, parents: &[Link]) {
        for dir in parents.iter().map(|parent| lowerdirs.dir(parent)) {
            if !matches!(dir, SnapshotDir::Snapshot(_)) {
                self.discard(dir).await;
            }
        }
    }

    /// Makes the `fs` of a new snapshot an empty directory again, unmounted if needed: a provider
    /// that refuses a layer should leave nothing, but this does not rely on it.
    pub(crate) async fn reset(&self, id: u64, parents: &[Link]) -> Result<(), SnapshotterError> {
        let dir = SnapshotDir::Snapshot(id);
        if self.is_mounted(dir).await? {
            let unmounted = self.unmount(dir).await;
            unmounted.map_err(|source| SnapshotterError::LayerUnavailable {
                name: id.to_string(),
                source,
            })?;
            if self.is_mounted(dir).await? {
                let mountpoint = self.store.directories.fs(dir);
                return Err(SnapshotterError::StillMounted { mountpoint });
            }
        }
        let parents = parents.to_vec();
        self.store
            .blocking(move |store| {
                let owner = store.directories.inherited_owner(&parents)?;
                Ok(store.directories.empty_fs(id, owner)?)
            })
            .await
    }

    async fn is_mounted(&self, dir: SnapshotDir) -> Result<bool, SnapshotterError> {
        self.store
            .blocking(move |store| store.is_mounted(dir))
            .await
    }
}

/// A restore under way, which ends also when its caller gives up.
struct Restoring<'a>(&'a LayerMounts, SnapshotDir);

impl Drop for Restoring<'_> {
    fn drop(&mut self) {
        let Self(mounts, dir) = self;
        mounts.restoring.lock().remove(dir);
        // A directory whose snapshot was removed had to wait for this.
        mounts.store.removed.notify_one();
    }
}

/// Runs a request to the provider as a task of its own, so that a panic becomes a refusal. The task
/// runs within the current span.
async fn isolated<T: Send + 'static>(
    work: impl Future<Output = Result<T, LayerRefusal>> + Send + 'static,
    panicked: impl FnOnce(JoinError) -> LayerRefusal,
) -> Result<T, LayerRefusal> {
    tokio::spawn(work.in_current_span())
        .await
        .unwrap_or_else(|error| Err(panicked(error)))
}
