//! Verifies whole layers: those of which everything is stored in the background, others when a
//! client uses them for an image that does not vouch for them.

use std::io::{self, Read};
use std::sync::mpsc;
use std::sync::{Arc, Weak};
use std::time::Duration;

use soci_errors::chain;
use soci_fetch::LayerData as _;
use soci_oci::{Digest, Hasher};
use soci_registry::{BlobSource as _, Deadline, RegistryError};
use soci_store::{ReadOutcome, StoreError};
use soci_ztoc::{SpanError, SpanId, VerifyError, verify_entries};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::mount_table::MountTable;
use crate::open_layer::OpenLayer;
use crate::reader_pause::ReaderPause;
use crate::verdict::Verdict;

/// Layers that are verified at a time because clients wait for them.
const AT_ONCE: usize = 4;
/// Time between two looks for layers of which everything is stored.
const INTERVAL: Duration = Duration::from_secs(2);
/// Time between two looks whether readers are quiet.
const STEP: Duration = Duration::from_millis(20);
/// Time after which a layer that could not be verified is tried again.
const RETRY: Duration = Duration::from_secs(60);
/// Size of a block of a tar in bytes.
const BLOCK: usize = 512;
/// Blocks of zeros that programs add to a tar, so that its length is a multiple of 10,240.
const PADDING_BLOCKS: usize = 20;
/// Most bytes that may follow the end of the tar.
const MOST_BEHIND: usize = 64 << 20;
/// Time limit for what follows the end of the tar, which is not stored.
const FETCH_LIMIT: Duration = Duration::from_secs(60);

/// Why a layer could not be verified. Says nothing about the layer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VerifierError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Read(VerifyError),
    #[error("cannot fetch what follows the end of the tar")]
    Fetch(#[source] RegistryError),
    #[error("the registry's bytes are wrong")]
    Bytes(#[source] SpanError),
    #[error(transparent)]
    Interrupted(#[from] soci_task::Interrupted),
    #[error("the work ended early: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// Why a verification is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// A client waits.
    Use,
    /// Everything is stored.
    Background,
}

/// Verifies layers.
pub(crate) struct Verifier {
    table: Weak<MountTable>,
    urgent: Semaphore,
    background: Semaphore,
    reader_pause: ReaderPause,
}

impl Verifier {
    pub(crate) fn new(table: Weak<MountTable>) -> Self {
        Self {
            table,
            urgent: Semaphore::new(AT_ONCE),
            background: Semaphore::new(1),
            reader_pause: ReaderPause::default(),
        }
    }

    /// Returns the verdict about a layer: the known one, or that of a complete read, which fetches
    /// what is missing. Continues if the caller is dropped.
    pub(crate) async fn verify(
        self: &Arc<Self>,
        layer: &Arc<OpenLayer>,
        reason: Reason,
    ) -> Result<Verdict, VerifierError> {
        let (verifier, layer) = (self.clone(), layer.clone());
        tokio::spawn(async move { verifier.run(&layer, reason).await }).await?
    }

    async fn run(
        self: &Arc<Self>,
        layer: &Arc<OpenLayer>,
        reason: Reason,
    ) -> Result<Verdict, VerifierError> {
        let _client = (reason == Reason::Use).then(|| layer.verification.wait_for_verdict());
        let _one_at_a_time = layer.verification.running.lock().await;
        if let Some(verdict) = layer.verification.verdict() {
            return Ok(verdict);
        }
        let slots = match reason {
            Reason::Use => &self.urgent,
            Reason::Background => &self.background,
        };
        // Never closed.
        let _slot = slots.acquire().await.ok();
        let start = Instant::now();
        let verdict = self.judge(layer, reason).await?;
        let stored = layer.data.stored().clone();
        let (digest, ztoc) = (stored.digest(), stored.ztoc_digest());
        match &verdict {
            Verdict::Genuine { diff_id } => tracing::info!(
                layer = %digest, %ztoc, %diff_id,
                seconds = start.elapsed().as_secs_f64(),
                "layer verified"
            ),
            Verdict::Forged { reason } => tracing::error!(
                layer = %digest, %ztoc, reason,
                "layer is forged: it is not used for new containers"
            ),
        }
        let (layer, decided) = (layer.clone(), verdict.clone());
        soci_task::run(move || layer.verification.decide(&stored, decided)).await?;
        Ok(verdict)
    }

    /// Whether the layer is still mounted.
    fn is_mounted(&self, layer: &Arc<OpenLayer>) -> bool {
        let table = self.table.upgrade();
        table.is_some_and(|table| table.is_mounted(layer))
    }

    /// Verifies layers of which everything is stored, one after the other, until the mounts end.
    pub(crate) async fn run_in_background(self: Arc<Self>) {
        let mut failed: Vec<(Weak<OpenLayer>, Instant)> = Vec::new();
        loop {
            tokio::time::sleep(INTERVAL).await;
            failed.retain(|(_, at)| at.elapsed() < RETRY);
            let Some(table) = self.table.upgrade() else {
                return;
            };
            let is_due = |layer: &Arc<OpenLayer>| {
                let failed = failed
                    .iter()
                    .any(|(failed, _)| failed.as_ptr() == Arc::as_ptr(layer));
                !failed && layer.can_be_verified()
            };
            let due = table.open_layers().into_iter().filter(is_due);
            let due: Vec<_> = due.map(|layer| Arc::downgrade(&layer)).collect();
            drop(table);
            if due.is_empty() {
                self.reader_pause.note_idle();
            }
            for layer in due {
                let Some(layer) = layer.upgrade() else {
                    continue;
                };
                if let Err(error) = self.verify(&layer, Reason::Background).await {
                    let digest = layer.data.stored().digest();
                    tracing::warn!(layer = %digest, error = chain(&error), "cannot verify a stored layer");
                    failed.push((Arc::downgrade(&layer), Instant::now()));
                }
            }
        }
    }

    async fn judge(
        self: &Arc<Self>,
        layer: &Arc<OpenLayer>,
        reason: Reason,
    ) -> Result<Verdict, VerifierError> {
        let (verifier, open) = (self.clone(), layer.clone());
        let compared = soci_task::run(move || {
            let index = open.data.stored().index()?;
            let stream = LayerStream {
                end: index.spans.uncompressed_size(),
                layer: open,
                at: 0,
                yields: (reason == Reason::Background).then_some(verifier),
                since: Instant::now(),
            };
            Ok::<_, StoreError>(verify_entries(stream, &index))
        });
        let hasher = match compared.await?? {
            Ok(hasher) => hasher,
            Err(error) if error.is_verdict() => {
                let reason = chain(&error);
                return Ok(Verdict::Forged { reason });
            }
            Err(error) => return Err(VerifierError::Read(error)),
        };
        if let Some(diff_id) = with_usual_padding(layer, &hasher) {
            return Ok(Verdict::Genuine { diff_id });
        }
        add_what_follows(layer, hasher).await
    }
}

impl OpenLayer {
    /// Whether everything is stored that verifying the layer needs, and no verdict is known.
    fn can_be_verified(&self) -> bool {
        let status = self.data.status();
        self.verification.is_claimed()
            && status.fetched_size >= status.size
            && self.verification.verdict().is_none()
    }
}

/// Tries what usually follows the end of a tar: nothing, or blocks of zeros.
fn with_usual_padding(layer: &OpenLayer, hasher: &Hasher) -> Option<Digest> {
    let mut hasher = hasher.clone();
    for _ in 0..=PADDING_BLOCKS {
        let diff_id = hasher.clone().finish();
        if layer.verification.is_expected(&diff_id) {
            return Some(diff_id);
        }
        hasher.update(&[0; BLOCK]);
    }
    None
}

/// Adds what follows the end of the tar, which the store does not keep.
async fn add_what_follows(
    layer: &Arc<OpenLayer>,
    mut hasher: Hasher,
) -> Result<Verdict, VerifierError> {
    let stored = layer.data.stored().clone();
    let spans = stored.spans().clone();
    let mut left = MOST_BEHIND;
    for id in spans.behind_the_tar().map(SpanId) {
        let Some(span) = spans.get(id) else { break };
        let fetch = layer
            .sources
            .read_range(span.compressed, Deadline::after(FETCH_LIMIT));
        let compressed = fetch.await.map_err(VerifierError::Fetch)?;
        let (spans, stored) = (spans.clone(), stored.clone());
        let extracted = soci_task::run(move || {
            let (window, mut out) = (stored.window(id)?, Vec::new());
            let extracted = spans.extract_behind_the_tar(id, &compressed, &window, left, &mut out);
            Ok::<_, StoreError>(extracted.map(|()| out))
        });
        match extracted.await?? {
            Ok(out) => {
                hasher.update(&out);
                left -= out.len().min(left);
            }
            Err(error @ (SpanError::Digest { .. } | SpanError::Length { .. })) => {
                return Err(VerifierError::Bytes(error));
            }
            Err(error) => {
                let reason = chain(&error);
                return Ok(Verdict::Forged { reason });
            }
        }
    }
    let diff_id = hasher.finish();
    Ok(Verdict::Genuine { diff_id })
}

/// The tar of a layer from its start to its end. What is missing is fetched.
struct LayerStream {
    layer: Arc<OpenLayer>,
    at: u64,
    end: u64,
    /// Set for work in the background, which rests as long as it works and waits for readers.
    yields: Option<Arc<Verifier>>,
    since: Instant,
}

impl LayerStream {
    /// Rests, unless a client waits for the verdict.
    fn rest(&self, verifier: &Verifier) {
        let is_awaited = || self.layer.verification.is_awaited();
        if is_awaited() {
            return;
        }
        std::thread::sleep(self.since.elapsed().min(INTERVAL));
        let unread_for = || self.layer.data.readers_quiet_for();
        while !is_awaited()
            && verifier.reader_pause.is_due(unread_for())
            && verifier.is_mounted(&self.layer)
        {
            std::thread::sleep(STEP);
        }
    }
}

impl Read for LayerStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if let Some(verifier) = &self.yields {
            self.rest(verifier);
            self.since = Instant::now();
        }
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let len = buf.len().min(left);
        let Some(part) = buf.get_mut(..len).filter(|part| !part.is_empty()) else {
            return Ok(0);
        };
        let data = &self.layer.data;
        // Not as a container reads: that would be part of the start-up profile.
        let stored = data.stored().read_at(self.at, part);
        if !matches!(stored, Ok(ReadOutcome::Filled)) {
            let (done, result) = mpsc::channel();
            let tell = move |bytes| {
                // The receiver waits.
                let _ = done.send(bytes);
            };
            data.read(self.at, len, Box::new(tell));
            let bytes = result.recv().map_err(io::Error::other)?;
            part.copy_from_slice(&bytes.map_err(io::Error::other)?);
        }
        self.at += len as u64;
        Ok(len)
    }
}
