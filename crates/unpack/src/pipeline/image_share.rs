//! The pipeline of a daemon, and an image's share of it.

use std::fmt;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use soci_registry::{BlobSource as _, Deadline, RegistryError, RemoteBlob};
use soci_ztoc::AheadMemory;
use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::budget::{self, Budget, LAYER};
use super::config::{ImageLimits, PipelineConfig};
use super::download::{Download, Failure, Plan, requests_of_layer};
use super::piece::Slabs;
use super::progress::{LayerProgress, PipelineUsage, Stage, StageTimings};
use super::request::{LayerBlob, PipelineRequest, UnpackedLayer};
use super::shares::{Claim, Shares, Units};
use super::stages::{self, Input, Layer};
use super::verdict::{MAX_RATIO, apply_error, cannot_fetch, digests, verdict};
use crate::downloads::Slot;
use crate::error::UnpackError;
use crate::scratch::empty_folder;

/// How long the first bytes of a layer that was begun earlier are waited for.
const START: Duration = Duration::from_secs(5);
/// Fewest and most layers of one image that are unpacked at a time if no limit is configured: the largest
/// machines write no faster with more. All images have one more, so that one which begins while another has
/// its layers unpacked does not wait for the end of a layer.
const LEAST_UNPACKS: usize = 4;
const MOST_UNPACKS: usize = 24;
/// Cores that a layer keeps busy without inflating ahead.
const CORES_OF_LAYER: u64 = 2;

/// The pipeline of a daemon.
pub struct Pipeline {
    config: PipelineConfig,
    cores: usize,
    /// For compressed bytes.
    memory: Arc<Shares>,
    slabs: Arc<Slabs>,
    ahead: AheadMemory,
    requests: Arc<Shares>,
    beside_readers: Arc<Shares>,
    unpacks: Arc<Shares>,
    windows: Arc<Shares>,
    next: AtomicU64,
}

impl fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pipeline")
            .field("usage", &self.usage())
            .finish_non_exhaustive()
    }
}

/// An image's share of the pipeline. Clones are shares of the same image.
#[derive(Debug, Clone)]
pub struct ImageShare {
    pipeline: Arc<Pipeline>,
    number: u64,
    limits: ImageLimits,
    requests: Arc<Shares>,
    unpacks: Arc<Shares>,
}

/// Ends a download when the layer is cancelled: its threads notice that as bytes come, and a registry need not
/// send any. Dropping what is returned leaves it alone.
fn ends_with(input: &Input, cancel: CancellationToken) -> Option<AbortOnDropHandle<()>> {
    let Input::Download(download) = input else {
        return None;
    };
    let ender = download.ender();
    let ends = async move {
        cancel.cancelled().await;
        ender.abort();
    };
    Some(AbortOnDropHandle::new(tokio::spawn(ends)))
}

fn units(limit: Option<usize>) -> u64 {
    limit.map_or(u64::MAX, |limit| limit as u64)
}

/// Number of threads of a layer that inflate ahead.
fn inflate_threads(config: &PipelineConfig, cores: usize) -> usize {
    let usual = || cores.saturating_sub(2).min(8);
    config.inflate_threads.unwrap_or_else(usual)
}

impl Pipeline {
    /// A pipeline that does nothing yet.
    #[must_use]
    pub fn new(config: PipelineConfig) -> Arc<Self> {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let usual = || (2 * cores).clamp(LEAST_UNPACKS, MOST_UNPACKS) + 1;
        let unpacks = config.unpacks.unwrap_or_else(usual);
        let memory = config.memory.unwrap_or_else(|| budget::usual(cores));
        let mut ahead = AheadMemory::new(0);
        let budget = Budget::of(memory, unpacks as u64, |most| {
            if inflate_threads(&config, cores) > 0 {
                ahead = AheadMemory::new(most);
            }
            ahead.limit()
        });
        let unpacks_of_image = match config.unpacks {
            Some(_) => budget.layers,
            None => budget.layers.saturating_sub(1),
        };
        Arc::new(Self {
            cores,
            memory: Shares::with_little_ahead(budget.compressed),
            slabs: Arc::new(Slabs::new(budget.compressed)),
            ahead,
            requests: Shares::new(units(config.downloads)),
            beside_readers: Shares::new(1),
            unpacks: Shares::with_limit_of_image(budget.layers, unpacks_of_image),
            windows: Shares::new(budget.windows),
            next: AtomicU64::new(0),
            config,
        })
    }

    /// A share for one image.
    #[must_use]
    pub fn image(self: &Arc<Self>, limits: ImageLimits) -> ImageShare {
        ImageShare {
            pipeline: Arc::clone(self),
            number: self.next.fetch_add(1, Ordering::Relaxed),
            limits,
            requests: Shares::new(limits.downloads as u64),
            unpacks: Shares::new(limits.unpacks as u64),
        }
    }

    /// What is being done.
    #[must_use]
    pub fn usage(&self) -> PipelineUsage {
        let layers = self.unpacks.usage();
        let parts = [
            self.memory.usage(),
            self.ahead.usage(),
            self.windows.usage(),
            (layers.0 * LAYER, layers.1 * LAYER),
        ];
        PipelineUsage {
            memory: parts.iter().map(|(now, _)| now).sum(),
            memory_peak: parts.iter().map(|(_, peak)| peak).sum(),
            requests: self.requests.usage().0,
            requests_waiting: (self.requests.waiting() + self.memory.waiting()) as u64,
            unpacking: layers.0,
            unpacks_waiting: self.unpacks.waiting() as u64,
        }
    }

    /// Whether there are more cores than the layers in work keep busy.
    fn has_spare_core(&self) -> bool {
        let busy = self.unpacks.usage().0.saturating_mul(CORES_OF_LAYER);
        self.config.inflate_threads.is_some() || busy < self.cores as u64
    }
}

/// A layer whose download is to begin.
pub(crate) struct Beginning {
    pub(crate) blob: RemoteBlob,
    pub(crate) size: u64,
    pub(crate) order: usize,
    pub(crate) first_byte: Option<Deadline>,
    /// Released when the download ends.
    pub(crate) slot: Option<Slot>,
}

/// A layer whose download has begun.
pub(crate) struct Begun {
    claim: Claim,
    input: Input,
}

impl Begun {
    fn failure(&self) -> Option<Arc<Failure>> {
        match &self.input {
            Input::Download(download) => Some(download.failure()),
            Input::Local(_) => None,
        }
    }

    /// Waits a while for the first bytes, and returns whether the download has not failed by then.
    pub(crate) fn has_started(&self) -> impl Future<Output = bool> + Send + use<> {
        let failure = self.failure();
        async move {
            match failure {
                // It may wait for memory, which it gets when it is unpacked.
                Some(failure) => timeout(START, failure.none_at_start())
                    .await
                    .unwrap_or(true),
                None => true,
            }
        }
    }
}

/// The slots of a layer that is being unpacked.
struct Slots<'s> {
    share: &'s ImageShare,
    claim: Claim,
    _units: [Units; 2],
}

impl Drop for Slots<'_> {
    fn drop(&mut self) {
        for shares in self.share.with_turns() {
            shares.deactivate(self.claim);
        }
        // Memory is kept from one layer to the next, not from one pull to the next.
        let pipeline = &self.share.pipeline;
        if pipeline.memory.usage().0 == 0 {
            pipeline.slabs.clear();
        }
    }
}

impl ImageShare {
    /// The pools in which layers that are being unpacked come first.
    fn with_turns(&self) -> [&Arc<Shares>; 4] {
        [
            &self.pipeline.memory,
            &self.pipeline.requests,
            &self.pipeline.beside_readers,
            &self.requests,
        ]
    }

    /// Downloads, verifies and unpacks a layer. The download begins immediately, as far as the budget
    /// allows; the lowest layers of an image come first.
    ///
    /// When this returns `Ok`, compressed and uncompressed digest are right, and the files are on disk.
    /// After an error the directory is empty again.
    ///
    /// `cancel` ends it early; only then, and not when the future is dropped, is it certain that
    /// nothing is written any more.
    ///
    /// # Errors
    /// The layer cannot be downloaded, verified or written.
    pub async fn unpack(
        &self,
        mut request: PipelineRequest,
        cancel: &CancellationToken,
    ) -> Result<UnpackedLayer, UnpackError> {
        let none = LayerBlob::Local(Box::new(std::io::empty()));
        let begun = match std::mem::replace(&mut request.blob, none) {
            LayerBlob::Remote(blob) => {
                let beginning = Beginning {
                    blob,
                    size: request.descriptor.size,
                    order: request.order,
                    first_byte: request.first_byte,
                    slot: None,
                };
                self.begin(beginning, Arc::clone(&request.progress))
            }
            LayerBlob::Local(file) => Begun {
                claim: self.claim(request.order),
                input: Input::Local(file),
            },
        };
        self.unpack_begun(request, begun, cancel).await
    }

    /// Begins to download a layer.
    pub(crate) fn begin(&self, layer: Beginning, progress: Arc<LayerProgress>) -> Begun {
        progress.set_stage(Stage::Downloading);
        let claim = self.claim(layer.order);
        let download = self.download(layer, progress, claim);
        Begun {
            claim,
            input: Input::Download(download),
        }
    }

    fn claim(&self, order: usize) -> Claim {
        Claim {
            image: self.number,
            layer: self.pipeline.next.fetch_add(1, Ordering::Relaxed),
            order,
        }
    }

    /// Unpacks a layer whose download has begun.
    pub(crate) async fn unpack_begun(
        &self,
        mut request: PipelineRequest,
        begun: Begun,
        cancel: &CancellationToken,
    ) -> Result<UnpackedLayer, UnpackError> {
        let failure = begun.failure();
        let Begun { claim, input } = begun;
        let began = Instant::now();
        // If the caller drops this future, the threads end soon.
        let cancel = cancel.child_token();
        let _dropped = cancel.clone().drop_guard();
        self.bound_output(&mut request);
        let again = match &input {
            Input::Download(download) => Some(download.blob().clone()),
            Input::Local(_) => None,
        };
        let slots = self.slots(failure, claim, &cancel).await?;
        let queued = began.elapsed();
        request.progress.set_stage(Stage::Unpacking);
        let (first, request) = self.attempt(request, input, claim, &cancel).await?;
        let mut unpacked = match (first, again) {
            (Err(error), Some(blob)) if error.is_damage() && !cancel.is_cancelled() => {
                let layer = blob.describe();
                tracing::debug!(%layer, %error, "layer was damaged on its way: it is fetched again");
                let request = self.start_over(request).await?;
                let beginning = Beginning {
                    blob,
                    size: request.descriptor.size,
                    order: request.order,
                    first_byte: None,
                    slot: None,
                };
                let progress = Arc::clone(&request.progress);
                let input = Input::Download(self.download(beginning, progress, claim));
                self.attempt(request, input, claim, &cancel).await?.0?
            }
            (first, _) => first?,
        };
        drop(slots);
        unpacked.timings.queued = queued;
        unpacked.timings.total = began.elapsed();
        Ok(unpacked)
    }

    fn bound_output(&self, request: &mut PipelineRequest) {
        let limits = self.pipeline.config.limits;
        let compressed = request.descriptor.size;
        let sane = compressed.saturating_mul(MAX_RATIO).max(limits.any_output);
        request.options.limits = limits;
        request.options.limits.output = sane.min(limits.output);
    }

    fn download(&self, layer: Beginning, progress: Arc<LayerProgress>, claim: Claim) -> Download {
        let config = &self.pipeline.config;
        let chunk = self.limits.chunk.filter(|chunk| *chunk > 0);
        let (chunk, parallel) = requests_of_layer(
            self.pipeline.memory.total(),
            self.pipeline.cores,
            chunk,
            self.limits.downloads,
        );
        Download::begin(Plan {
            blob: layer.blob,
            size: layer.size,
            chunk,
            parallel,
            claim,
            requests: [
                Arc::clone(&self.requests),
                Arc::clone(&self.pipeline.requests),
            ],
            beside_readers: Arc::clone(&self.pipeline.beside_readers),
            memory: Arc::clone(&self.pipeline.memory),
            slabs: Arc::clone(&self.pipeline.slabs),
            speed: config.speed,
            first_byte: layer.first_byte,
            demand: config.demand.clone(),
            progress,
            _slot: layer.slot,
        })
    }

    /// Waits until the layer may be unpacked.
    async fn slots(
        &self,
        failure: Option<Arc<Failure>>,
        claim: Claim,
        cancel: &CancellationToken,
    ) -> Result<Slots<'_>, UnpackError> {
        let failed = async {
            match failure {
                Some(failure) => failure.wait().await,
                None => std::future::pending::<RegistryError>().await,
            }
        };
        let units = async {
            let image = self.unpacks.acquire(claim, 1).await;
            [image, self.pipeline.unpacks.acquire(claim, 1).await]
        };
        let units = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(UnpackError::Cancelled),
            error = failed => return Err(cannot_fetch(error)),
            units = units => units,
        };
        for shares in self.with_turns() {
            shares.activate(claim);
        }
        Ok(Slots {
            share: self,
            claim,
            _units: units,
        })
    }

    /// Unpacks the layer once. Returns the request to try again.
    async fn attempt(
        &self,
        mut request: PipelineRequest,
        input: Input,
        claim: Claim,
        cancel: &CancellationToken,
    ) -> Result<(Result<UnpackedLayer, UnpackError>, PipelineRequest), UnpackError> {
        let ended = ends_with(&input, cancel.clone());
        let (share, cancel) = (self.clone(), cancel.clone());
        let runtime = Handle::current();
        let work = move || {
            let _ended = ended;
            let unpacked = share.unpack_blocking(&mut request, input, claim, &cancel, runtime);
            if unpacked.is_err()
                && let Err(error) = empty_folder(&request.directory)
            {
                tracing::warn!(%error, "cannot remove what was unpacked of a layer");
            }
            (unpacked, request)
        };
        Ok(soci_task::run(work).await?)
    }

    async fn start_over(
        &self,
        mut request: PipelineRequest,
    ) -> Result<PipelineRequest, UnpackError> {
        request.progress.restart();
        let restart = move || {
            let restarted = request
                .store
                .as_mut()
                .map_or(Ok(()), |store| store.restart());
            (restarted, request)
        };
        let (restarted, request) = soci_task::run(restart).await?;
        restarted.map_err(UnpackError::Store)?;
        Ok(request)
    }

    fn unpack_blocking(
        &self,
        request: &mut PipelineRequest,
        input: Input,
        claim: Claim,
        cancel: &CancellationToken,
        runtime: Handle,
    ) -> Result<UnpackedLayer, UnpackError> {
        let began = Instant::now();
        let pipeline = &self.pipeline;
        let blob = match &input {
            Input::Download(download) => Some(download.blob().clone()),
            Input::Local(_) => None,
        };
        let spare = || pipeline.has_spare_core();
        let inflate_threads = match pipeline.ahead.limit() {
            0 => 0,
            _ => inflate_threads(&pipeline.config, pipeline.cores),
        };
        let checkpoints = pipeline.config.checkpoints.as_ref();
        let checkpoints = checkpoints.filter(|_| inflate_threads > 0);
        let layer = Layer {
            config: &pipeline.config,
            directory: &request.directory,
            options: &request.options,
            progress: &request.progress,
            cancel,
            claim,
            windows: &pipeline.windows,
            inflate_threads,
            ahead: &pipeline.ahead,
            entries: checkpoints.and_then(|known| known.of(&request.descriptor.digest)),
            has_spare_core: &spare,
            runtime,
        };
        let cancelled = || cancel.is_cancelled();
        let store = request.store.as_deref_mut();
        let outcome = stages::run(&layer, input, store, &cancelled).map_err(UnpackError::Thread)?;
        let config = &pipeline.config;
        let verified = verdict(outcome, digests(request), blob.as_ref(), config, cancel)?;
        let (compressed_size, arrived) = (verified.compressed_size, verified.arrived);
        let applied = verified.application.complete();
        let mut applied = applied.map_err(|error| apply_error(error, config))?;
        soci_faults::point("unpack-layer-applied");
        request.progress.set_stage(Stage::Syncing);
        let synced = Instant::now();
        if config.durable {
            let durable = applied.sync();
            durable.map_err(|error| apply_error(error, config))?;
        }
        soci_faults::point("unpack-layer-synced");
        if let Some(store) = &mut request.store {
            store.finish(&request.diff_id).map_err(UnpackError::Store)?;
        }
        if cancel.is_cancelled() {
            return Err(UnpackError::Cancelled);
        }
        request.progress.set_stage(Stage::Done);
        Ok(UnpackedLayer {
            compressed_size,
            uncompressed_size: applied.size,
            diff_id: request.diff_id,
            implied: applied.implied,
            timings: StageTimings {
                download: arrived.saturating_duration_since(began),
                sync: synced.elapsed(),
                ..StageTimings::default()
            },
        })
    }
}
