//! Prepare of an image layer: mounted lazily and committed if possible; otherwise unpacked and
//! committed by the snapshotter; otherwise an active snapshot that the client fills. A layer that is
//! unpacked with all layers of its image is never left to the client.

use std::pin::pin;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::api::types::Mount;
use crate::api::v1::Kind;
use crate::error::SnapshotterError;
use crate::ids::Reservation;
use crate::image_layer::{ImageLayer, Provided};
use crate::layer_mounts::LayerMounts;
use crate::lowerdirs::LowerDirs;
use crate::metadata::{
    Fallback, LayerCommit, LayerOutcome, LazyRecord, Link, NewLayer, NewSnapshot, Usage,
};
use crate::refusal::{RefusalCounts, RefusalReason};
use crate::snapshot_dir::SnapshotDir;
use crate::store::SnapshotStore;
use crate::{labels, local_layer, mounts, prepare_log};
use soci_layer::{Interest, LayerRefusal, LayerRequest, MountedInfo};

/// The result of the checks before anything is made.
enum Plan {
    /// The target is committed already.
    Exists {
        /// Whether it is mounted lazily, or else unpacked.
        lazy: bool,
    },
    /// The target does not exist: directories were made for it.
    Make(Reservation, Vec<Link>),
}

/// Prepares image layers, one at a time per target.
pub(crate) struct LayerPreparer {
    mounts: Arc<LayerMounts>,
    targets: soci_task::KeyedLocks<String>,
    pub(crate) refusals: RefusalCounts,
    /// Cancelled when the snapshotter is closed.
    closing: CancellationToken,
}

impl LayerPreparer {
    pub(crate) fn new(mounts: Arc<LayerMounts>, closing: CancellationToken) -> Self {
        Self {
            mounts,
            targets: soci_task::KeyedLocks::default(),
            refusals: RefusalCounts::default(),
            closing,
        }
    }

    /// Prepares a layer. `client` is cancelled if the client cancels the call: unpacking ends then,
    /// and nothing is left to the client.
    ///
    /// Returns the mounts of an active snapshot, or [`SnapshotterError::TargetExists`] if the layer is
    /// committed.
    pub(crate) async fn prepare(
        &self,
        layer: ImageLayer,
        client: &CancellationToken,
    ) -> Result<Vec<Mount>, SnapshotterError> {
        // Until this ends: another client that gives up does not end the work on the image.
        let _interest = self.mounts.announce(&layer).await;
        let _only_one = self.targets.lock(&layer.target).await;
        let mut layer = Arc::new(layer);
        let plan = {
            let layer = Arc::clone(&layer);
            let planned = self.mounts.store.blocking(move |store| plan(store, &layer));
            planned.await?
        };
        let (reservation, parents) = match plan {
            Plan::Make(reservation, parents) => (reservation, parents),
            Plan::Exists { lazy } => {
                prepare_log::exists(&layer, lazy);
                return Err(layer.target_exists());
            }
        };
        let id = reservation.id;
        let refusal = match self.mount(&mut layer, id, &parents).await {
            Ok(root) => {
                soci_faults::point("prepare-layer-mounted");
                let lazy = LazyRecord::new(layer.namespace.clone(), layer.labels.clone(), root);
                let made = NewLayer::Lazy(lazy);
                let how = Provided::Lazy;
                return self.commit(&layer, reservation, made, how).await;
            }
            Err(refusal) => refusal,
        };
        soci_faults::point("prepare-layer-refused");
        match refusal.is_eager() {
            true => prepare_log::eager(&layer, &refusal),
            false => prepare_log::not_lazy(&layer, &refusal),
        }
        self.refusals.add(&refusal);
        let detached = matches!(refusal, LayerRefusal::WithoutParent);
        let mut reason = RefusalReason::from(&refusal);
        if !refusal.leaves_to_client() {
            let how = match refusal.is_eager() {
                true => Provided::Eager,
                false => Provided::Unpacked,
            };
            match self.unpack(&layer, id, &parents, how, client).await {
                Ok((usage, _until_committed)) => {
                    soci_faults::point("prepare-layer-unpacked");
                    let why = Fallback::new(reason, &layer.labels);
                    let made = NewLayer::Unpacked { usage, why };
                    return self.commit(&layer, reservation, made, how).await;
                }
                Err(failure) => {
                    self.refusals.add(&failure);
                    if how == Provided::Eager {
                        self.mounts.discard(SnapshotDir::Snapshot(id)).await;
                        return Err(match client.is_cancelled() {
                            true => SnapshotterError::Cancelled,
                            false => SnapshotterError::NotUnpacked { source: failure },
                        });
                    }
                    reason.text = format!("{}; {}", reason.text, soci_errors::chain(&failure));
                }
            }
        }
        let why = Fallback::new(reason, &layer.labels);
        let deferred = self.defer(&layer, reservation, &parents, why, client);
        let deferred = deferred.await;
        match deferred {
            Ok(mounts) if detached => Ok(mounts::detached(mounts)),
            Ok(mounts) => Ok(mounts),
            Err(error) => {
                self.mounts.discard(SnapshotDir::Snapshot(id)).await;
                Err(error)
            }
        }
    }

    /// Mounts a layer lazily. Drops the labels that the image set.
    async fn mount(
        &self,
        layer: &mut Arc<ImageLayer>,
        id: u64,
        parents: &[Link],
    ) -> Result<MountedInfo, LayerRefusal> {
        layer.check_position()?;
        // A directory that the layer implies looks as in the layers below: they must be mounted.
        let checked = self.mounts.check(&LowerDirs::Shared, parents).await;
        checked.map_err(LayerRefusal::failed)?;
        let request = layer.request(&self.mounts.store.directories, id, parents);
        let labels = self.mounts.vet_labels(&request).await?;
        Arc::make_mut(layer).labels.clone_from(&labels);
        self.mounts.mount(LayerRequest { labels, ..request }).await
    }

    /// Unpacks a layer until the client cancels or the snapshotter is closed.
    async fn unpack(
        &self,
        layer: &ImageLayer,
        id: u64,
        parents: &[Link],
        how: Provided,
        client: &CancellationToken,
    ) -> Result<(Usage, Option<Interest>), LayerRefusal> {
        let cancel = self.closing.child_token();
        let work = local_layer::unpack(&self.mounts, layer, id, parents, how, cancel.clone());
        let mut work = pin!(work);
        let unpacked = tokio::select! {
            unpacked = &mut work => unpacked,
            () = client.cancelled() => {
                cancel.cancel();
                // Until it ends it may write to the directory.
                work.await
            }
        };
        unpacked.inspect_err(|failure| prepare_log::not_unpacked(layer, failure))
    }

    /// Commits a layer that was mounted or unpacked under its target.
    async fn commit(
        &self,
        layer: &Arc<ImageLayer>,
        reservation: Reservation,
        made: NewLayer,
        how: Provided,
    ) -> Result<Vec<Mount>, SnapshotterError> {
        let id = reservation.id;
        let lazy = how == Provided::Lazy;
        let committed = {
            let layer = Arc::clone(layer);
            self.mounts.store.blocking(move |store| {
                Ok(store.metadata.insert_layer(LayerCommit {
                    id,
                    target: &layer.target,
                    parent: &layer.parent,
                    labels: layer.committed_labels(how),
                    made,
                })?)
            })
        };
        let error = match committed.await {
            Ok(LayerOutcome::Committed(_)) => {
                soci_faults::point("prepare-layer-committed");
                match lazy {
                    true => prepare_log::lazy(layer),
                    false => prepare_log::unpacked(layer),
                }
                return Err(layer.target_exists());
            }
            Ok(LayerOutcome::Exists(_)) => {
                prepare_log::exists(layer, lazy);
                layer.target_exists()
            }
            Err(error) => {
                match lazy {
                    true => prepare_log::lazy_not_committed(layer, &error),
                    false => prepare_log::not_unpacked(layer, &error),
                }
                error
            }
        };
        self.mounts.discard(SnapshotDir::Snapshot(id)).await;
        Err(error)
    }

    /// Leaves the layer to the client: adds an active snapshot with an empty directory.
    async fn defer(
        &self,
        layer: &Arc<ImageLayer>,
        reservation: Reservation,
        parents: &[Link],
        why: Fallback,
        client: &CancellationToken,
    ) -> Result<Vec<Mount>, SnapshotterError> {
        let id = reservation.id;
        if client.is_cancelled() {
            // The client would neither fill nor remove the snapshot.
            return Err(SnapshotterError::Cancelled);
        }
        self.mounts.check(&LowerDirs::Shared, parents).await?;
        self.mounts.reset(id, parents).await?;
        soci_faults::point("prepare-mountpoint-cleared");
        let inserted = {
            let (layer, why) = (Arc::clone(layer), why.clone());
            self.mounts.store.blocking(move |store| {
                let new = NewSnapshot {
                    id: reservation.id,
                    name: &layer.key,
                    kind: Kind::Active,
                    parent: &layer.parent,
                    labels: layer.labels.clone(),
                    fallback: Some(why),
                    id_maps: None,
                };
                store.insert(new, &LowerDirs::Shared)
            })
        };
        let mounts = inserted.await?;
        soci_faults::point("prepare-deferred");
        prepare_log::deferred(layer, &why);
        Ok(mounts)
    }
}

/// Checks a layer against the metadata and makes its directories. Blocking.
fn plan(store: &SnapshotStore, layer: &ImageLayer) -> Result<Plan, SnapshotterError> {
    if let Some(name) = store.metadata.target(&layer.target, &layer.parent)? {
        let existing = store.metadata.get(&name)?.info.labels;
        return Ok(Plan::Exists {
            lazy: existing.contains_key(labels::REMOTE),
        });
    }
    let parents = store.metadata.before_insert(&layer.key, &layer.parent)?;
    let owner = store.directories.inherited_owner(&parents)?;
    let reservation = store.ids.reserve();
    store.directories.create(reservation.id, true, owner)?;
    soci_faults::point("prepare-directory-made");
    Ok(Plan::Make(reservation, parents))
}
