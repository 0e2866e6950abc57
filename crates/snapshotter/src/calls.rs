//! The calls of the Snapshots service.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::api::types::Mount;
use crate::api::v1::{Info, Kind};
use crate::create::create;
use crate::error::SnapshotterError;
use crate::image_layer::ImageLayer;
use crate::labels::{self, Labels};
use crate::lowerdirs::LowerDirs;
use crate::metadata::{Commit, Usage};
use crate::snapshotter::Snapshotter;
use crate::store::Creation;
use crate::{client_copy, compare, disk_usage, snapshot_name};

/// How long the removal of a key waits for the end of its Prepare.
const END_PATIENCE: Duration = Duration::from_secs(5);

impl Snapshotter {
    /// Creates a writable snapshot of `parent`, or of nothing if that is empty.
    ///
    /// With the label `containerd.io/snapshot.ref` it is an image layer: if it can be mounted
    /// lazily, or is committed already, the answer is [`SnapshotterError::TargetExists`], and the
    /// client need not unpack it.
    pub(crate) async fn prepare(
        &self,
        namespace: Option<String>,
        key: String,
        parent: String,
        labels: Labels,
    ) -> Result<Vec<Mount>, SnapshotterError> {
        let target = labels.get(labels::TARGET).cloned().unwrap_or_default();
        if target.is_empty() {
            return self
                .create(namespace, Kind::Active, key, parent, labels)
                .await;
        }
        let layer = ImageLayer::new(namespace, key, parent, target, labels)?;
        let call = self.calls.enter()?;
        // A task of its own, which ends consistently even if the client cancels: this future is
        // dropped then, and the guard cancels the token.
        let client = CancellationToken::new();
        let _until_dropped = client.clone().drop_guard();
        let (preparer, span) = (Arc::clone(&self.preparer), layer.span());
        let under_way = self.preparing.begin(&layer.key, &client);
        let work = async move {
            let _call = call;
            let _under_way = under_way;
            preparer.prepare(layer, &client).await
        };
        tokio::spawn(work.instrument(span)).await?
    }

    /// Creates a read-only snapshot of `parent`, or of nothing if that is empty.
    pub(crate) async fn view(
        &self,
        namespace: Option<String>,
        key: String,
        parent: String,
        labels: Labels,
    ) -> Result<Vec<Mount>, SnapshotterError> {
        self.create(namespace, Kind::View, key, parent, labels)
            .await
    }

    async fn create(
        &self,
        namespace: Option<String>,
        kind: Kind,
        key: String,
        parent: String,
        labels: Labels,
    ) -> Result<Vec<Mount>, SnapshotterError> {
        let new = Creation {
            kind,
            key,
            parent,
            labels,
        };
        create(&self.layer_mounts, self.calls.enter()?, namespace, new).await
    }

    /// Returns the mounts of an active snapshot or a view.
    pub(crate) async fn mounts(
        &self,
        namespace: Option<String>,
        key: String,
    ) -> Result<Vec<Mount>, SnapshotterError> {
        let _call = self.calls.enter()?;
        let name = key.clone();
        let lost = Arc::clone(&self.lost);
        let (snapshot, mut lowerdirs, was_lost) = self
            .store
            .blocking(move |store| {
                let snapshot = store.metadata.snapshot(&key)?;
                let lowerdirs = store.lowerdirs(&snapshot)?;
                let was_lost = lost.contains(snapshot.record.id);
                Ok((snapshot, lowerdirs, was_lost))
            })
            .await?;
        let kind = snapshot.record.kind();
        if !matches!(kind, Kind::Active | Kind::View) {
            return Err(SnapshotterError::NotMountable { name });
        }
        let (id, parents) = (snapshot.record.id, &snapshot.parents);
        if lowerdirs == LowerDirs::Shared && self.store.is_compared(&snapshot.record) {
            let (mounts, parents) = (Arc::clone(&self.layer_mounts), parents.clone());
            let work = async move { compare::mount_parents(&mounts, id, &parents).await };
            lowerdirs = tokio::spawn(work).await??;
        }
        self.layer_mounts.check(&lowerdirs, parents).await?;
        self.layer_mounts.admit(namespace, parents, true).await?;
        if was_lost {
            // The client is about to start the container, on the present mounts.
            let lost = Arc::clone(&self.lost);
            let cleared = self.store.blocking(move |_| {
                lost.clear(id);
                Ok(())
            });
            cleared.await?;
        }
        Ok(self.store.mounts(kind, id, parents, &lowerdirs))
    }

    /// Turns the active snapshot `key` into the committed one `name`, on `parent` if that is not
    /// empty.
    pub(crate) async fn commit(
        &self,
        name: String,
        key: String,
        parent: String,
        labels: Labels,
    ) -> Result<(), SnapshotterError> {
        let call = self.calls.enter()?;
        snapshot_name::check(&name)?;
        let mut labels = labels::check(labels)?;
        client_copy::mark(&name, &key, &mut labels);
        self.store
            .blocking(move |store| {
                let _call = call;
                let record = store.metadata.get(&key)?;
                let usage = match record.kind() {
                    Kind::Active => disk_usage::measure(&store.directories.fs(record.id))?,
                    // Refused below, with the errors in containerd's order.
                    _ => Usage::default(),
                };
                soci_faults::point("commit-measured");
                store.metadata.commit(Commit {
                    id: record.id,
                    key: &key,
                    name: &name,
                    parent: &parent,
                    labels,
                    usage,
                })?;
                soci_faults::point("commit-committed");
                Ok(())
            })
            .await
    }

    /// Removes a snapshot. Its directory is deleted by the next sweep.
    pub(crate) async fn remove(&self, key: String) -> Result<(), SnapshotterError> {
        let call = self.calls.enter()?;
        // A limited time: looking up a lazy layer is not cancelled.
        let ending = self.preparing.end(&key);
        let ended = tokio::time::timeout(END_PATIENCE, ending).await;
        let was_prepared = ended.unwrap_or(true);
        let removed = self.store.blocking(move |store| {
            let _call = call;
            store.remove(&key)
        });
        match removed.await {
            Ok(record) => self.layer_mounts.removed(&record.info.labels),
            Err(error) if was_prepared && error.code() == tonic::Code::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Describes a snapshot.
    pub(crate) async fn stat(&self, key: String) -> Result<Info, SnapshotterError> {
        let _call = self.calls.enter()?;
        self.store
            .blocking(move |store| Ok(store.metadata.get(&key)?.info))
            .await
    }

    /// Changes the labels that `mask` names, or all.
    pub(crate) async fn update(
        &self,
        info: Info,
        mask: Vec<String>,
    ) -> Result<Info, SnapshotterError> {
        let call = self.calls.enter()?;
        let labels = labels::check(info.labels)?;
        self.store
            .blocking(move |store| {
                let _call = call;
                Ok(store.metadata.update(&info.name, &labels, &mask)?)
            })
            .await
    }

    /// Returns the disk space of one snapshot without its parents: for a lazy one, what is stored of
    /// its layer now.
    pub(crate) async fn usage(&self, key: String) -> Result<Usage, SnapshotterError> {
        let _call = self.calls.enter()?;
        let provider = self.layer_mounts.provider();
        self.store
            .blocking(move |store| {
                let record = store.metadata.get(&key)?;
                let fs = store.directories.fs(record.id);
                match record.kind() {
                    Kind::Active => Ok(disk_usage::measure(&fs)?),
                    // The mount of a lazy one is not walked.
                    Kind::Committed => Ok(provider
                        .disk_usage(&fs)
                        .map_or(record.usage, |size| disk_usage::of(size.bytes, size.inodes))),
                    _ => Ok(record.usage),
                }
            })
            .await
    }

    /// Deletes the directories of removed snapshots now.
    pub(crate) async fn cleanup(&self) -> Result<(), SnapshotterError> {
        let call = self.calls.enter()?;
        let sweeper = Arc::clone(&self.sweeper);
        let work = async move {
            let _call = call;
            sweeper.sweep().await
        };
        tokio::spawn(work).await?
    }
}
