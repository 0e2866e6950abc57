//! From layers to snapshots, lowest first: what the snapshotter takes over is left to it, the
//! rest is downloaded, applied, checked and committed.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use containerd_client::services::v1::ApplyRequest;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, Info, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use containerd_client::tonic::Code;
use containerd_client::types::Mount;
use soci_containerd::labels::{self, ImageLabels, gc};
use soci_index::{LayerVerdict, LazyReport};
use soci_oci::{Descriptor, Digest, Reference};

use super::{Downloads, Fetched, Layer, State};
use crate::containerd::{Containerd, api_descriptor, failed, snapshotter_failed, update_labels};

/// How often a layer is prepared again after the snapshotter had it and then had it not.
const TRIES: usize = 3;

/// What is needed to unpack an image.
pub(crate) struct Unpack<'a> {
    pub(crate) containerd: &'a Containerd,
    pub(crate) snapshotter: &'a str,
    pub(crate) reference: &'a Reference,
    pub(crate) image: &'a Fetched,
    pub(crate) index_digest: Option<Digest>,
    pub(crate) downloads: &'a Downloads,
    /// What the registry says about laziness; `None` for a snapshotter that never is lazy.
    pub(crate) report: Option<&'a LazyReport>,
    pub(crate) active: &'a Active,
}

/// How long a Prepare may take whose client has gone.
const PREPARE_ENDS: Duration = Duration::from_millis(500);

/// The snapshots that layers are being applied to right now.
#[derive(Debug, Default)]
pub(crate) struct Active(Mutex<Vec<String>>);

impl Active {
    fn keys(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, key: &str) {
        self.keys().retain(|active| active != key);
    }

    /// Removes what an interrupted pull was working on.
    pub(crate) async fn remove_all(&self, containerd: &Containerd, snapshotter: &str) {
        let keys = std::mem::take(&mut *self.keys());
        if keys.is_empty() {
            return;
        }
        // A Prepare that was just being made comes to its end although nobody waits for it.
        tokio::time::sleep(PREPARE_ENDS).await;
        for key in keys {
            if let Err(error) = remove(containerd, snapshotter, &key).await {
                tracing::warn!(
                    key,
                    error = crate::output::reason(&error),
                    "a snapshot is left over"
                );
            }
        }
    }
}

/// What became of a Prepare.
enum Prepared {
    /// The snapshotter has the layer.
    Taken(Info),
    /// The layer is to be applied to these mounts.
    Deferred { key: String, mounts: Vec<Mount> },
}

impl Unpack<'_> {
    /// Makes the snapshots of all layers.
    pub(crate) async fn run(&self) -> anyhow::Result<Vec<Layer>> {
        let chain = self.image.config.rootfs.chain_ids();
        let mut present = None;
        for (at, chain_id) in chain.iter().enumerate().rev() {
            if self.stat(*chain_id).await?.is_some() {
                self.containerd
                    .hold_snapshot(self.snapshotter, &chain_id.to_string())
                    .await?;
                present = Some(at);
                break;
            }
        }
        let first_missing = present.map_or(0, |at| at.saturating_add(1));
        if self.report.is_none_or(|report| report.index.is_err()) {
            for layer in self
                .image
                .manifest
                .layers
                .get(first_missing..)
                .unwrap_or_default()
            {
                self.downloads.start(layer).await;
            }
        }
        let mut layers = Vec::new();
        let all = self
            .image
            .manifest
            .layers
            .iter()
            .zip(&self.image.config.rootfs.diff_ids)
            .zip(&chain)
            .enumerate();
        for (at, ((layer, diff_id), chain_id)) in all {
            let parent = at
                .checked_sub(1)
                .and_then(|below| chain.get(below))
                .copied();
            let already_present = at < first_missing;
            let taken = if already_present {
                self.stat(*chain_id).await?
            } else {
                self.layer(at, layer, *diff_id, *chain_id, parent).await?
            };
            let state = match taken {
                Some(info) if info.labels.contains_key(labels::REMOTE) => State::Lazy,
                Some(info) if info.labels.contains_key(labels::HAS_INDEX) => {
                    State::UnpackedBySnapshotter
                }
                Some(_) | None => State::Unpacked,
            };
            layers.push(Layer {
                digest: layer.digest,
                size: layer.size,
                state,
                already_present,
                reason: self.reason(layer.digest, state, already_present),
            });
        }
        if let Some(top) = chain.last() {
            update_labels(
                self.containerd,
                &self.image.manifest.config,
                HashMap::from([gc::of_config(self.snapshotter, *top)]),
            )
            .await?;
        }
        Ok(layers)
    }

    /// Why a layer is not lazy.
    fn reason(&self, layer: Digest, state: State, already_present: bool) -> Option<String> {
        if state == State::Lazy {
            return None;
        }
        let (_, verdict) = self
            .report?
            .layers
            .iter()
            .find(|(digest, _)| *digest == layer)?;
        Some(match verdict {
            LayerVerdict::NoIndex { .. } | LayerVerdict::NoZtoc { .. } => verdict.to_string(),
            LayerVerdict::Lazy { .. } if already_present => {
                "it has a zTOC now, but an earlier pull unpacked it and its snapshot is still used"
                    .to_owned()
            }
            LayerVerdict::Lazy { .. } => {
                "it has a zTOC, but the snapshotter did not mount it; its log says why".to_owned()
            }
        })
    }

    /// One layer; the snapshot, if the snapshotter made it.
    async fn layer(
        &self,
        at: usize,
        layer: &Descriptor,
        diff_id: Digest,
        chain_id: Digest,
        parent: Option<Digest>,
    ) -> anyhow::Result<Option<Info>> {
        match self.prepare(at, chain_id, parent).await? {
            Prepared::Taken(info) => Ok(Some(info)),
            Prepared::Deferred { key, mounts } => {
                let applied = self.apply(layer, diff_id, chain_id, &key, mounts).await;
                self.active.forget(&key);
                if let Err(error) = applied {
                    let _ = remove(self.containerd, self.snapshotter, &key).await;
                    return Err(error.context(format!("layer {}", layer.digest)));
                }
                Ok(None)
            }
        }
    }

    async fn stat(&self, chain_id: Digest) -> anyhow::Result<Option<Info>> {
        let request = self.containerd.request(StatSnapshotRequest {
            snapshotter: self.snapshotter.to_owned(),
            key: chain_id.to_string(),
        });
        match self.containerd.services().snapshots().stat(request).await {
            Ok(response) => Ok(response.into_inner().info),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(snapshotter_failed(
                &format!("use snapshotter {:?}", self.snapshotter),
                self.snapshotter,
                &status,
            )),
        }
    }

    async fn prepare(
        &self,
        at: usize,
        chain_id: Digest,
        parent: Option<Digest>,
    ) -> anyhow::Result<Prepared> {
        let image = ImageLabels {
            reference: self.reference,
            manifest_digest: self.image.manifest_digest,
            manifest: &self.image.manifest,
            index_digest: self.index_digest,
        };
        for _ in 0..TRIES {
            let key = extract_key(chain_id);
            // From here on it may exist, also if nobody waits for the answer.
            self.active.keys().push(key.clone());
            let request = self.containerd.request(PrepareSnapshotRequest {
                snapshotter: self.snapshotter.to_owned(),
                key: key.clone(),
                parent: parent.map(|digest| digest.to_string()).unwrap_or_default(),
                labels: image.for_layer(at, chain_id),
            });
            match self
                .containerd
                .services()
                .snapshots()
                .prepare(request)
                .await
                .inspect_err(|_| self.active.forget(&key))
            {
                Ok(response) => {
                    let mounts = response.into_inner().mounts;
                    return Ok(Prepared::Deferred { key, mounts });
                }
                Err(status) if status.code() == Code::AlreadyExists => {
                    // It may have been collected between the two requests: then once more.
                    if let Some(info) = self.stat(chain_id).await? {
                        return Ok(Prepared::Taken(info));
                    }
                }
                Err(status) => {
                    return Err(snapshotter_failed(
                        &format!("prepare layer {}", at.saturating_add(1)),
                        self.snapshotter,
                        &status,
                    ));
                }
            }
        }
        bail!(
            "snapshotter {:?} says that layer {} exists, but does not have it",
            self.snapshotter,
            at.saturating_add(1)
        )
    }

    async fn apply(
        &self,
        layer: &Descriptor,
        diff_id: Digest,
        chain_id: Digest,
        key: &str,
        mounts: Vec<Mount>,
    ) -> anyhow::Result<()> {
        self.downloads.wait(layer).await?;
        let request = self.containerd.request(ApplyRequest {
            diff: Some(api_descriptor(layer)?),
            mounts,
            ..ApplyRequest::default()
        });
        let applied = self
            .containerd
            .services()
            .diff()
            .apply(request)
            .await
            .map_err(|status| failed("unpack it", &status))?
            .into_inner()
            .applied
            .context("containerd answered without what it unpacked")?;
        if applied.digest != diff_id.to_string() {
            bail!(
                "its content is {} where the image's configuration says {diff_id}",
                applied.digest
            );
        }
        let request = self.containerd.request(CommitSnapshotRequest {
            snapshotter: self.snapshotter.to_owned(),
            name: chain_id.to_string(),
            key: key.to_owned(),
            labels: HashMap::from([(labels::TARGET.to_owned(), chain_id.to_string())]),
        });
        match self.containerd.services().snapshots().commit(request).await {
            Ok(_) => {}
            // Another pull was faster.
            Err(status) if status.code() == Code::AlreadyExists => {
                remove(self.containerd, self.snapshotter, key).await?;
            }
            Err(status) => return Err(failed("commit its snapshot", &status)),
        }
        let uncompressed = HashMap::from([(labels::UNCOMPRESSED.to_owned(), diff_id.to_string())]);
        update_labels(self.containerd, layer, uncompressed).await
    }
}

async fn remove(containerd: &Containerd, snapshotter: &str, key: &str) -> anyhow::Result<()> {
    let request = containerd.request(RemoveSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        key: key.to_owned(),
    });
    match containerd.services().snapshots().remove(request).await {
        Ok(_) => Ok(()),
        Err(status) if status.code() == Code::NotFound => Ok(()),
        Err(status) => Err(failed(&format!("remove snapshot {key}"), &status)),
    }
}

/// The name of a snapshot that a layer is applied to, in containerd's form.
fn extract_key(chain_id: Digest) -> String {
    let nanoseconds = jiff::Timestamp::now().subsec_nanosecond();
    // Any value that another pull at the same nanosecond does not have.
    let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), nanoseconds);
    let random: String = format!("{random:016x}").chars().take(8).collect();
    format!("extract-{nanoseconds}-{random} {chain_id}")
}
