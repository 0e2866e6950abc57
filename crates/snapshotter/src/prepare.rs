//! Prepare of an image layer: mounted lazily and committed at once if that is possible; otherwise
//! unpacked and committed by us; otherwise a plain active snapshot that the client fills.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::api::types::Mount;
use crate::api::v1::Kind;
use crate::calls::check_name;
use crate::error::SnapshotterError;
use crate::labels::{self, Labels};
use crate::lowers::Lowers;
use crate::metadata::{
    Fallback, LayerCommit, LayerOutcome, LazyRecord, Link, MadeLayer, NewSnapshot,
};
use crate::outcome::{log_exists, log_lazy, log_not_unpacked, log_refusal, log_unpacked};
use crate::place::Place;
use crate::snapshotter::{Inner, Reservation, Snapshotter};
use soci_layer::{LayerRefusal, LayerRequest, MountedInfo, Purpose, View};

/// A Prepare with a target.
pub(crate) struct Layer {
    pub(crate) key: String,
    pub(crate) parent: String,
    pub(crate) target: String,
    namespace: String,
    labels: Labels,
}

/// What is found out before anything is made.
enum Plan {
    /// The target is there already: mounted lazily, or unpacked.
    Exists {
        lazy: bool,
    },
    Make(Reservation, Vec<Link>),
}

impl Snapshotter {
    /// Makes a writable snapshot on `parent`, or on nothing if that is empty.
    ///
    /// With the label `containerd.io/snapshot.ref` it is an image layer: if it can be mounted
    /// lazily, or is committed already, the answer is [`SnapshotterError::TargetExists`], which
    /// tells the client that it need not unpack it.
    pub(crate) async fn prepare(
        &self,
        namespace: Option<String>,
        key: String,
        parent: String,
        labels: Labels,
    ) -> Result<Vec<Mount>, SnapshotterError> {
        let Some(target) = labels
            .get(labels::TARGET)
            .filter(|target| !target.is_empty())
        else {
            return self.inner.create(Kind::Active, key, parent, labels).await;
        };
        let layer = Layer {
            namespace: namespace
                .filter(|namespace| !namespace.is_empty())
                .ok_or(SnapshotterError::NamespaceMissing)?,
            target: target.clone(),
            key,
            parent,
            labels: labels::check(labels)?,
        };
        check_name(&layer.key)?;
        check_name(&layer.target)?;
        let call = self.inner.enter()?;
        let inner = Arc::clone(&self.inner);
        // A task of its own: if the client goes away, this future is dropped, and what it does
        // has to come to a consistent end nevertheless.
        let (mut answer, answered) = oneshot::channel();
        tokio::spawn(async move {
            let _call = call;
            let result = inner.prepare_layer(layer, &mut answer).await;
            // An error here means that nobody listens any more.
            let _ = answer.send(result);
        });
        answered.await.map_err(|_| SnapshotterError::Task {
            reason: "preparing a layer panicked".to_owned(),
        })?
    }
}

pub(crate) type Answer = oneshot::Sender<Result<Vec<Mount>, SnapshotterError>>;

impl Inner {
    async fn prepare_layer(
        self: &Arc<Self>,
        layer: Layer,
        answer: &mut Answer,
    ) -> Result<Vec<Mount>, SnapshotterError> {
        let _only_one = self.targets.lock(&layer.target).await;
        let layer = Arc::new(layer);
        let plan = {
            let layer = Arc::clone(&layer);
            self.blocking(move |inner| inner.plan(&layer)).await?
        };
        let (reservation, parents) = match plan {
            Plan::Make(reservation, parents) => (reservation, parents),
            Plan::Exists { lazy } => {
                log_exists(&layer, lazy);
                return Err(layer.target_exists());
            }
        };
        let id = reservation.id;
        let refusal = match self.mount(&layer, id).await {
            Ok(root) => {
                soci_faults::point("prepare-layer-mounted");
                let lazy = LazyRecord::new(layer.namespace.clone(), layer.labels.clone(), root);
                return self
                    .commit_layer(&layer, reservation, MadeLayer::Lazy(lazy))
                    .await;
            }
            Err(refusal) => refusal,
        };
        soci_faults::point("prepare-layer-refused");
        log_refusal(&layer, &refusal);
        self.refusals.note(&refusal);
        let mut why = Fallback::new(&refusal, &layer.labels);
        if !refusal.leaves_to_client() {
            match self.unpack(&layer, id, &parents, answer).await {
                Ok(usage) => {
                    soci_faults::point("prepare-layer-unpacked");
                    let made = MadeLayer::Unpacked { usage, why };
                    return self.commit_layer(&layer, reservation, made).await;
                }
                Err(failure) => {
                    self.refusals.note(&failure);
                    why.reason = format!(
                        "{}; nor is it unpacked here: {}",
                        why.reason,
                        soci_errors::chain(&failure)
                    );
                }
            }
        }
        self.defer(&layer, reservation, parents, why, answer).await
    }

    /// Checks the request against the metadata and makes the directories.
    fn plan(self: &Arc<Self>, layer: &Layer) -> Result<Plan, SnapshotterError> {
        if let Some(name) = self.metadata.target(&layer.target, &layer.parent)? {
            let existing = self.metadata.get(&name)?.info.labels;
            return Ok(Plan::Exists {
                lazy: existing.contains_key(labels::REMOTE),
            });
        }
        let parents = self.metadata.before_insert(&layer.key, &layer.parent)?;
        let owner = self.directories.inherited_owner(&parents)?;
        let reservation = self.reserve();
        self.directories.create(reservation.id, true, owner)?;
        soci_faults::point("prepare-directory-made");
        Ok(Plan::Make(reservation, parents))
    }

    async fn mount(self: &Arc<Self>, layer: &Layer, id: u64) -> Result<MountedInfo, LayerRefusal> {
        let provider = Arc::clone(&self.provider);
        let request = layer.request(self.directories.fs(id));
        // A task of its own, so that a panic is a refusal like others.
        tokio::spawn(async move { provider.mount(request).await })
            .await
            .unwrap_or_else(|error| Err(LayerRefusal::failed(error)))
    }

    /// Commits a layer that we have made, under its target.
    async fn commit_layer(
        self: &Arc<Self>,
        layer: &Arc<Layer>,
        reservation: Reservation,
        made: MadeLayer,
    ) -> Result<Vec<Mount>, SnapshotterError> {
        let id = reservation.id;
        let lazy = matches!(made, MadeLayer::Lazy(_));
        let committed = {
            let layer = Arc::clone(layer);
            self.blocking(move |inner| {
                let mut labels = layer.labels.clone();
                let mut set = |key: &str, value: &str| {
                    labels.insert(key.to_owned(), value.to_owned());
                };
                if lazy {
                    set(labels::REMOTE, labels::REMOTE_VALUE);
                }
                set(labels::HAS_INDEX, "true");
                set(labels::NAMESPACE, &layer.namespace);
                inner.metadata.insert_layer(LayerCommit {
                    id,
                    target: &layer.target,
                    parent: &layer.parent,
                    labels,
                    made,
                })
            })
            .await
        };
        match committed {
            Ok(LayerOutcome::Committed(_)) => {
                soci_faults::point("prepare-layer-committed");
                if lazy {
                    log_lazy(layer);
                } else {
                    log_unpacked(layer);
                }
                Err(layer.target_exists())
            }
            Ok(LayerOutcome::Exists(_)) => {
                self.discard(Place::Snapshot(id)).await;
                log_exists(layer, lazy);
                Err(layer.target_exists())
            }
            Err(error) => {
                if lazy {
                    tracing::warn!(
                        key = layer.key,
                        parent = layer.parent,
                        "remote-snapshot-prepared" = "false",
                        %error,
                        "cannot commit a lazily mounted layer"
                    );
                } else {
                    log_not_unpacked(layer, &error);
                }
                self.discard(Place::Snapshot(id)).await;
                Err(error)
            }
        }
    }

    /// Leaves the layer to the client: an active snapshot with an empty directory.
    async fn defer(
        self: &Arc<Self>,
        layer: &Arc<Layer>,
        reservation: Reservation,
        parents: Vec<Link>,
        why: Fallback,
        answer: &Answer,
    ) -> Result<Vec<Mount>, SnapshotterError> {
        let id = reservation.id;
        if answer.is_closed() {
            // Nobody would ever fill or remove it.
            self.discard(Place::Snapshot(id)).await;
            return Err(SnapshotterError::Task {
                reason: "the client went away".to_owned(),
            });
        }
        let deferred = async {
            self.check_layers(&Lowers::Shared, &parents).await?;
            self.clear_mountpoint(id, parents).await?;
            soci_faults::point("prepare-mountpoint-cleared");
            let layer = Arc::clone(layer);
            let why = why.clone();
            self.blocking(move |inner| {
                let parents = inner.insert_made(NewSnapshot {
                    id: reservation.id,
                    name: &layer.key,
                    kind: Kind::Active,
                    parent: &layer.parent,
                    labels: layer.labels.clone(),
                    fallback: Some(why),
                    id_maps: None,
                })?;
                Ok(inner.mounts(Kind::Active, id, &parents, &Lowers::Shared))
            })
            .await
        };
        match deferred.await {
            Ok(mounts) => {
                soci_faults::point("prepare-deferred");
                tracing::warn!(
                    key = layer.key,
                    parent = layer.parent,
                    "defer-snapshot-runtime" = "true",
                    reason = why.code,
                    error = why.reason,
                    "the layer is left to the client to pull and unpack"
                );
                Ok(mounts)
            }
            Err(error) => {
                self.discard(Place::Snapshot(id)).await;
                Err(error)
            }
        }
    }

    /// A provider that refuses leaves nothing behind; if it does, it is removed here.
    pub(crate) async fn clear_mountpoint(
        self: &Arc<Self>,
        id: u64,
        parents: Vec<Link>,
    ) -> Result<(), SnapshotterError> {
        let mountpoint = self.directories.fs(id);
        if self.is_mounted(id).await? {
            self.provider.unmount(&mountpoint).await.map_err(|error| {
                SnapshotterError::LayerUnavailable {
                    name: id.to_string(),
                    source: error,
                }
            })?;
            if self.is_mounted(id).await? {
                return Err(SnapshotterError::Task {
                    reason: format!("{} is still mounted", mountpoint.display()),
                });
            }
        }
        self.blocking(move |inner| {
            let owner = inner.directories.inherited_owner(&parents)?;
            inner.directories.empty_fs(id, owner)
        })
        .await
    }

    async fn is_mounted(self: &Arc<Self>, id: u64) -> Result<bool, SnapshotterError> {
        self.blocking(move |inner| inner.mounted_now(id)).await
    }

    /// Whether anything is mounted in a directory of ours. Blocking.
    pub(crate) fn mounted_now(&self, place: impl Into<Place>) -> Result<bool, SnapshotterError> {
        let failed = SnapshotterError::io("read", soci_mountinfo::PATH.as_ref());
        let table = soci_mountinfo::Table::read().map_err(failed)?;
        let path = self.directories.real_snapshot(place);
        Ok(table.under(&path).next().is_some())
    }
}

impl Layer {
    fn target_exists(&self) -> SnapshotterError {
        SnapshotterError::TargetExists {
            target: self.target.clone(),
        }
    }

    pub(crate) fn request(&self, mountpoint: PathBuf) -> LayerRequest {
        LayerRequest {
            namespace: self.namespace.clone(),
            mountpoint,
            labels: self.labels.clone(),
            purpose: Purpose::ImageLayer,
            view: View::default(),
        }
    }

    pub(crate) fn digest(&self) -> &str {
        self.labels
            .get(labels::LAYER_DIGEST)
            .map_or("", String::as_str)
    }
}
