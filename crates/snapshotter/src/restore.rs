//! After a start: every lazy snapshot on record is mounted again, several at a time.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};

use crate::error::SnapshotterError;
use crate::metadata::LazyRecord;
use crate::mountinfo::Mounts;
use crate::provider::{LayerRefusal, LayerRequest, ProviderError};
use crate::snapshotter::{CONCURRENT_MOUNTS, Inner};

impl Inner {
    /// Mounts the lazy snapshots again. With `allow_invalid` a failure is logged only; it is tried
    /// again when somebody wants the layer.
    pub(crate) async fn restore(
        self: &Arc<Self>,
        allow_invalid: bool,
    ) -> Result<(), SnapshotterError> {
        let lazy = self.blocking(|inner| inner.prepare_mountpoints()).await?;
        let count = lazy.len();
        let restores = lazy.into_iter().map(|(id, name, lazy)| async move {
            match self.restore_one(id, lazy).await {
                Ok(()) => Ok(()),
                Err(refusal) if allow_invalid => {
                    tracing::warn!(
                        name,
                        reason = refusal.code(),
                        error = %refusal,
                        "cannot mount a lazy snapshot again; nothing can start on it until that \
                         succeeds"
                    );
                    self.broken.lock().insert(id, refusal);
                    Ok(())
                }
                Err(refusal) => Err(SnapshotterError::Restore {
                    name,
                    reason: refusal.to_string(),
                }),
            }
        });
        stream::iter(restores)
            .buffer_unordered(CONCURRENT_MOUNTS)
            .try_collect::<()>()
            .await?;
        let failed = self.broken.lock().len();
        if count > 0 {
            tracing::info!(
                mounted = count.saturating_sub(failed),
                failed,
                "lazy snapshots of an earlier run are mounted again"
            );
        }
        Ok(())
    }

    /// Another attempt for a layer that could not be mounted at the start. Without it a container
    /// would start on the empty directory.
    pub(crate) async fn repair(
        self: &Arc<Self>,
        id: u64,
        name: &str,
        lazy: &LazyRecord,
    ) -> Result<(), ProviderError> {
        if !self.broken.lock().contains_key(&id) {
            return Ok(());
        }
        let _one_at_a_time = self.repairs.lock(name).await;
        if !self.broken.lock().contains_key(&id) {
            return Ok(());
        }
        match self.restore_one(id, lazy.clone()).await {
            Ok(()) => {
                self.broken.lock().remove(&id);
                tracing::info!(name, "a lazy snapshot is mounted again after all");
                Ok(())
            }
            Err(refusal) => {
                let error = ProviderError::new(self.directories.fs(id), &refusal);
                self.broken.lock().insert(id, refusal);
                Err(error)
            }
        }
    }

    async fn restore_one(self: &Arc<Self>, id: u64, lazy: LazyRecord) -> Result<(), LayerRefusal> {
        let provider = Arc::clone(&self.provider);
        let request = LayerRequest {
            namespace: lazy.namespace.clone(),
            mountpoint: self.directories.fs(id),
            labels: lazy.labels.clone(),
        };
        let root = tokio::spawn(async move { provider.restore(request).await })
            .await
            .unwrap_or_else(|error| Err(LayerRefusal::failed(error)))?;
        let recorded = self.blocking(move |inner| inner.metadata.set_lazy_root(id, &lazy, root));
        recorded.await.map_err(LayerRefusal::failed)
    }

    /// The lazy snapshots, their mount points being there. A mount point that something is
    /// mounted on is not touched: the mount may be dead.
    fn prepare_mountpoints(&self) -> Result<Vec<(u64, String, LazyRecord)>, SnapshotterError> {
        let lazy = self.metadata.lazy()?;
        if !lazy.is_empty() {
            let mounts = Mounts::read().map_err(SnapshotterError::io(
                "read",
                "/proc/self/mountinfo".as_ref(),
            ))?;
            for (id, ..) in &lazy {
                if !mounts.under(&self.directories.real_snapshot(*id)) {
                    self.directories.ensure_mountpoint(*id)?;
                }
            }
        }
        Ok(lazy)
    }
}
