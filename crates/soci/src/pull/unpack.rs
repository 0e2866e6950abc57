//! From layers to snapshots, lowest first: what the snapshotter takes over is left to it, the
//! rest is downloaded, applied, checked and committed.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context as _, bail};
use parking_lot::Mutex;
use soci_containerd::labels::{self, ImageLabels, gc};
use soci_containerd::{Code, Content, Mount, Namespace, Snapshots, apply};
use soci_discovery::{FoundBy, LazyReport};
use soci_oci::{Descriptor, Digest, ImageConfig, Reference};

use super::{Downloads, ImageDocuments, Layer, State};
use crate::containerd::snapshotter_failed;
use crate::remote::reason;

/// How often a layer is prepared again after the snapshotter had it and then had it not.
const TRIES: usize = 3;

/// What is needed to unpack an image.
pub(crate) struct Unpack<'a> {
    pub(crate) containerd: &'a Namespace,
    pub(crate) snapshots: &'a Snapshots,
    pub(crate) reference: &'a Reference,
    pub(crate) image: &'a ImageDocuments,
    pub(crate) index_digest: Option<Digest>,
    pub(crate) downloads: &'a Downloads,
    /// Which layers can be lazy; `None` for a snapshotter that never mounts lazily.
    pub(crate) report: Option<&'a LazyReport>,
    pub(crate) active: &'a Active,
}

/// How long a Prepare may take whose client has gone.
const PREPARE_ENDS: Duration = Duration::from_millis(500);

/// The snapshots that layers are being applied to right now.
#[derive(Debug, Default)]
pub(crate) struct Active(Mutex<Vec<String>>);

impl Active {
    fn forget(&self, key: &str) {
        self.0.lock().retain(|active| active != key);
    }

    /// Removes what an interrupted pull was working on.
    pub(crate) async fn remove_all(&self, snapshots: &Snapshots) {
        let keys = std::mem::take(&mut *self.0.lock());
        if keys.is_empty() {
            return;
        }
        // A Prepare in flight completes although no caller waits for it.
        tokio::time::sleep(PREPARE_ENDS).await;
        for key in keys {
            if let Err(error) = snapshots.remove(&key).await {
                tracing::warn!(key, %error, "cannot remove the snapshot of an interrupted pull");
            }
        }
    }
}

/// Whether the snapshotter has all layers of an image, each lazily.
pub(crate) async fn all_are_lazy(
    snapshots: &Snapshots,
    image: &ImageConfig,
) -> anyhow::Result<bool> {
    // The uppermost first: the others are there if it is.
    for chain_id in image.rootfs.chain_ids().iter().rev() {
        let labels = snapshots.labels(&chain_id.to_string()).await;
        let labels = labels.map_err(|error| snapshotter_failed(snapshots.snapshotter(), error))?;
        if !labels.is_some_and(|labels| labels.contains_key(labels::REMOTE)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What became of a Prepare.
enum Prepared {
    /// The snapshotter has the layer.
    Taken(HashMap<String, String>),
    /// The layer is to be applied to these mounts.
    Deferred { key: String, mounts: Vec<Mount> },
}

impl Unpack<'_> {
    /// Makes the snapshots of all layers.
    pub(crate) async fn run(&self) -> anyhow::Result<Vec<Layer>> {
        let chain = self.image.config.rootfs.chain_ids();
        let mut present = None;
        for (at, chain_id) in chain.iter().enumerate().rev() {
            if self.labels(*chain_id).await?.is_none() {
                continue;
            }
            let (name, key) = (self.snapshots.snapshotter(), chain_id.to_string());
            self.containerd.hold_snapshot(name, &key).await?;
            // What a pull that failed left may have been collected before it was held.
            if self.labels(*chain_id).await?.is_some() {
                present = Some(at);
                break;
            }
        }
        let first_missing = present.map_or(0, |at| at.saturating_add(1));
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
                self.labels(*chain_id).await?
            } else {
                self.layer(at, layer, *diff_id, *chain_id, parent).await?
            };
            let state = match taken {
                Some(of) if of.contains_key(labels::REMOTE) => State::Lazy,
                Some(of) if of.contains_key(labels::NAMESPACE) => State::UnpackedBySnapshotter,
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
            let label = gc::of_config(self.snapshots.snapshotter(), *top);
            Content::new(self.containerd)
                .add_labels(&self.image.manifest.config.digest, HashMap::from([label]))
                .await?;
        }
        Ok(layers)
    }

    /// Whether no index of the image was found, or none is of use.
    fn is_without_index(&self) -> bool {
        self.report.is_none_or(|report| report.index.is_err())
    }

    /// Why a layer is not lazy.
    fn reason(&self, layer: Digest, state: State, already_present: bool) -> Option<String> {
        if state == State::Lazy {
            return None;
        }
        let report = self.report?;
        let mut layers = report.layers.iter();
        let (_, ztoc) = layers.find(|(digest, _)| *digest == layer)?;
        let found_by = report.index.as_ref().ok().map(|found| found.by);
        Some(match ztoc {
            Err(refusal) => reason(refusal),
            Ok(_) if already_present => {
                "it has a zTOC now, but an earlier pull unpacked it and its snapshot is still used"
                    .to_owned()
            }
            Ok(_) if found_by == Some(FoundBy::Referrers) => {
                "it has a zTOC in an index of version 1, which the snapshotter uses only with \
                 [pull_modes.soci_v1] enable = true"
                    .to_owned()
            }
            Ok(_) => "it has a zTOC, but the snapshotter did not mount it; `soci status` shows why"
                .to_owned(),
        })
    }

    /// Unpacks one layer; returns the labels of its snapshot if the snapshotter made it.
    async fn layer(
        &self,
        at: usize,
        layer: &Descriptor,
        diff_id: Digest,
        chain_id: Digest,
        parent: Option<Digest>,
    ) -> anyhow::Result<Option<HashMap<String, String>>> {
        let prepared = self.prepare(at, chain_id, parent).await;
        match prepared.with_context(|| format!("layer {}", layer.digest))? {
            Prepared::Taken(labels) => Ok(Some(labels)),
            Prepared::Deferred { key, mounts } => {
                if self.is_without_index() {
                    // Those above are left to this program as well.
                    let above = self.image.manifest.layers.get(at..);
                    for layer in above.unwrap_or_default() {
                        self.downloads.start(layer).await;
                    }
                }
                let applied = self.apply(layer, diff_id, chain_id, &key, mounts).await;
                self.active.forget(&key);
                if let Err(error) = applied {
                    let _ = self.snapshots.remove(&key).await;
                    return Err(error.context(format!("layer {}", layer.digest)));
                }
                Ok(None)
            }
        }
    }

    async fn labels(&self, chain_id: Digest) -> anyhow::Result<Option<HashMap<String, String>>> {
        let labels = self.snapshots.labels(&chain_id.to_string()).await;
        labels.map_err(|error| snapshotter_failed(self.snapshots.snapshotter(), error))
    }

    async fn prepare(
        &self,
        at: usize,
        chain_id: Digest,
        parent: Option<Digest>,
    ) -> anyhow::Result<Prepared> {
        let mut image = ImageLabels {
            reference: self.reference,
            manifest_digest: self.image.manifest_digest,
            manifest: &self.image.manifest,
            index_digest: self.index_digest,
            eager: self.is_without_index(),
        };
        for _ in 0..TRIES {
            let key = extract_key(chain_id);
            // From here on it may exist, also if no caller waits for the answer.
            self.active.0.lock().push(key.clone());
            let parent = parent.map(|digest| digest.to_string()).unwrap_or_default();
            let labels = image.for_layer(at, chain_id);
            let prepared = self.snapshots.prepare(&key, &parent, labels).await;
            match prepared.inspect_err(|_| self.active.forget(&key)) {
                Ok(Some(mounts)) => return Ok(Prepared::Deferred { key, mounts }),
                Ok(None) => {
                    self.active.forget(&key);
                    // It may have been collected between the two requests: then once more.
                    if let Some(labels) = self.labels(chain_id).await? {
                        return Ok(Prepared::Taken(labels));
                    }
                }
                Err(error) if image.eager && error.code() == Some(Code::Unavailable) => {
                    // Where the snapshotter pulls no other way, it fails once more. Otherwise this
                    // program may have credentials that the snapshotter does not.
                    let error = soci_errors::chain(&error);
                    tracing::warn!(error, "the snapshotter cannot pull the layer");
                    image.eager = false;
                }
                Err(error) => return Err(snapshotter_failed(self.snapshots.snapshotter(), error)),
            }
        }
        bail!(
            "snapshotter {:?} says that layer {} exists, but does not have it",
            self.snapshots.snapshotter(),
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
        let applied = apply(self.containerd, layer, mounts).await?;
        if applied != diff_id.to_string() {
            bail!("its content is {applied} where the image's configuration says {diff_id}");
        }
        let labels = HashMap::from([(labels::TARGET.to_owned(), chain_id.to_string())]);
        let name = chain_id.to_string();
        if !self.snapshots.commit(key, &name, labels).await? {
            // Another pull was faster.
            self.snapshots.remove(key).await?;
        }
        let uncompressed = HashMap::from([(labels::UNCOMPRESSED.to_owned(), diff_id.to_string())]);
        let content = Content::new(self.containerd);
        Ok(content.add_labels(&layer.digest, uncompressed).await?)
    }
}

/// The name of a snapshot that a layer is applied to, in containerd's form.
fn extract_key(chain_id: Digest) -> String {
    let nanoseconds = jiff::Timestamp::now().subsec_nanosecond();
    // Any value that another pull at the same nanosecond does not have.
    let random = fastrand::u32(..);
    format!("extract-{nanoseconds}-{random:08x} {chain_id}")
}
