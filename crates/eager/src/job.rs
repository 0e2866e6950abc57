//! The work on one image.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use soci_layer::{LowerLayer, UnpackedSize};
use soci_unpack::Stage;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::EagerError;
use crate::image::{ImageToPull, PlannedLayer, WantedLayer, position};
use crate::layer_work::LayerWork;
use crate::puller::ImagePull;
use crate::report::{ImageProgress, PullState, WorkProgress};
use crate::works::{Need, Works};

/// The work on one image. Dropping it ends the work on layers that no other image needs.
pub(crate) struct ImageJob {
    pub(crate) image: ImageToPull,
    pub(crate) layers: Vec<PlannedLayer>,
    started: Instant,
    /// The namespace whose content store keeps the compressed layers, if one does.
    namespace: Option<String>,
    pull: Arc<dyn ImagePull>,
    works: Arc<Works>,
    state: Mutex<JobState>,
    ended: watch::Sender<Option<EagerError>>,
    pub(crate) clients: Mutex<Clients>,
}

#[derive(Default)]
struct JobState {
    /// Layers under way, or ready, by position.
    running: BTreeMap<usize, Arc<LayerWork>>,
    /// Layers that a Prepare has taken, by position. As long as the job keeps them, other images
    /// do not pull them ahead, although their snapshots may not be committed yet.
    taken: BTreeMap<usize, Arc<LayerWork>>,
}

/// The Prepares that are interested in the job.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    pub(crate) number: usize,
    /// Grows with each that comes.
    pub(crate) arrived: u64,
    /// The last thing that one of them did was to give up.
    pub(crate) gave_up: bool,
}

/// The snapshot that a layer is for.
pub(crate) struct Destination {
    /// Its `fs`, an empty directory.
    pub(crate) directory: PathBuf,
    /// The layers below, nearest first.
    pub(crate) lower: Vec<Box<dyn LowerLayer>>,
}

impl ImageJob {
    pub(crate) fn new(
        image: ImageToPull,
        layers: Vec<PlannedLayer>,
        namespace: Option<String>,
        pull: Arc<dyn ImagePull>,
        works: Arc<Works>,
    ) -> Self {
        Self {
            image,
            layers,
            started: Instant::now(),
            namespace,
            pull,
            works,
            state: Mutex::default(),
            ended: watch::Sender::new(None),
            clients: Mutex::default(),
        }
    }

    /// Starts the layers at these positions, lowest first.
    pub(crate) fn start(self: &Arc<Self>, positions: impl Iterator<Item = usize>) {
        for at in positions {
            self.work(at, Need::Later);
        }
    }

    /// Returns the work on the layer at a position, which is started unless it is under way.
    fn work(self: &Arc<Self>, at: usize, need: Need) -> Option<Arc<LayerWork>> {
        let layer = self.layers.get(at)?;
        let mut state = self.state.lock();
        if let Some(work) = state.running.get(&at).filter(|work| work.is_of_use()) {
            return Some(Arc::clone(work));
        }
        if self.end_reason().is_some() {
            return None;
        }
        // Without a parent: the Prepare that came may be of another layer.
        let span = tracing::error_span!(
            parent: None,
            "pull",
            image = %self.image.reference,
            layerDigest = %layer.descriptor.digest,
        );
        let namespace = self.namespace.as_deref();
        let work = span.in_scope(|| self.works.work(namespace, layer, &self.pull, need))?;
        state.running.insert(at, Arc::clone(&work));
        let (ended, job) = (work.ended(), Arc::downgrade(self));
        tokio::spawn(async move {
            if let Err(error) = ended.await
                && let Some(job) = Weak::upgrade(&job)
            {
                job.end(error);
            }
        });
        Some(work)
    }

    /// Waits for the layer at a position and moves it to the directory of its snapshot.
    pub(crate) async fn deliver(
        self: &Arc<Self>,
        at: usize,
        to: Destination,
        cancel: &CancellationToken,
    ) -> Result<UnpackedSize, EagerError> {
        let pulled = loop {
            let Some(work) = self.work(at, Need::Now) else {
                return Err(self.end_reason().unwrap_or(EagerError::Interrupted));
            };
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Err(EagerError::Cancelled),
                error = self.wait_for_end() => return Err(error),
                ended = work.ended() => ended?,
            }
            // Another image may have taken it, and its snapshot is gone or on another parent.
            if let Some(pulled) = work.take() {
                break pulled;
            }
        };
        {
            let mut state = self.state.lock();
            if let Some(work) = state.running.remove(&at) {
                state.taken.insert(at, work);
            }
        }
        self.clients.lock().gave_up = false;
        soci_faults::point("eager-layer-taken");
        let size = pulled.size;
        let moved = soci_task::blocking(move || {
            if !pulled.implied.is_empty() {
                let settled = pulled.implied.settle(&pulled.folder.fs(), &to.lower);
                settled.map_err(|source| EagerError::Settle {
                    source: Arc::new(source),
                })?;
            }
            pulled.folder.move_to(&to.directory)
        });
        moved.await.inspect_err(|error| self.end(error.clone()))?;
        Ok(size)
    }

    /// Ends the work on the image; the first reason counts.
    pub(crate) fn end(&self, reason: EagerError) {
        let first = self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            if first {
                *ended = Some(reason);
            }
            first
        });
        if first {
            // The folders of layers that are not needed are removed with these.
            let state = std::mem::take(&mut *self.state.lock());
            drop(state);
        }
    }

    /// Whether every layer that was started has been taken.
    pub(crate) fn is_done(&self) -> bool {
        self.state.lock().running.is_empty()
    }

    /// Why the work was ended, if it was.
    pub(crate) fn end_reason(&self) -> Option<EagerError> {
        self.ended.borrow().clone()
    }

    async fn wait_for_end(&self) -> EagerError {
        let mut ended = self.ended.subscribe();
        match ended.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or(EagerError::Interrupted),
            Err(_) => EagerError::Interrupted,
        }
    }

    /// Whether a Prepare has taken this layer.
    pub(crate) fn has_committed(&self, layer: &WantedLayer) -> bool {
        let at = position(self.image.manifest, &self.layers, layer);
        at.is_ok_and(|at| self.state.lock().taken.contains_key(&at))
    }

    /// Reports how far the image is.
    pub(crate) fn progress(&self) -> ImageProgress {
        let state = self.state.lock();
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let begun = state.taken.values().chain(state.running.values());
        let downloaded = begun.map(|work| load(&work.progress.downloaded)).sum();
        let layers = self.layers.iter().enumerate().map(|(at, layer)| {
            let mut progress = WorkProgress {
                digest: layer.descriptor.digest,
                size: layer.descriptor.size,
                downloaded: layer.descriptor.size,
                unpacked: 0,
                state: PullState::Committed,
            };
            if let Some(work) = state.running.get(&at) {
                progress.downloaded = load(&work.progress.downloaded);
                progress.unpacked = load(&work.progress.unpacked);
                progress.state = match work.progress.stage() {
                    _ if work.is_ready() => PullState::Ready,
                    Stage::Queued => PullState::Queued,
                    Stage::Downloading => PullState::Downloading,
                    Stage::Unpacking | Stage::Syncing | Stage::Done => PullState::Unpacking,
                };
            }
            progress
        });
        let layers = layers.collect();
        ImageProgress {
            reference: self.image.reference.to_string(),
            manifest: self.image.manifest,
            namespace: self.image.namespace.clone(),
            elapsed: self.started.elapsed(),
            downloaded,
            layers,
        }
    }
}
