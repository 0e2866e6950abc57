//! The download of one layer in ranged requests: many under way, their bytes in order.
//!
//! A request is made when there is memory for all of its bytes, in the order of the layer: whatever is
//! in memory can be used as soon as the bytes before it were. A layer that must come in one request
//! gets a window instead: when that is full, the request waits and does not count as under way. While
//! readers of containers wait for the network, all requests but one wait as well, and leave unread what
//! is sent to them.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use soci_registry::{BlobSource as _, ByteStream, Deadline, RegistryError, RemoteBlob};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;

use super::config::{Demand, SpeedLimits};
use super::piece::{PIECE, Piece, PieceBuffer, Slabs, memory_of, room_in};
use super::progress::LayerProgress;
use super::shares::{Claim, Shares, Units};
use crate::downloads::Slot;

/// Memory of a request that may have more bytes.
const WINDOW: u64 = 4 << 20;
/// Responses that bring what a core inflates, hashes and writes: 50 to 80 MB/s each, as registries send.
const REQUESTS_OF_CORE: usize = 2;
/// Time between two looks whether readers of containers still wait.
const DEMAND_LOOK: Duration = Duration::from_millis(25);
/// Requests without a retry after which one more is made at a time.
const CLEAN: u32 = 8;

type Pieces = mpsc::Receiver<Result<Piece, RegistryError>>;

/// What is downloaded, and with whose means.
pub(crate) struct Plan {
    pub(crate) blob: RemoteBlob,
    pub(crate) size: u64,
    /// Most bytes of a request.
    pub(crate) chunk: Option<u64>,
    /// Limit of requests under way.
    pub(crate) parallel: usize,
    pub(crate) claim: Claim,
    /// Requests under way, of the image and of the daemon.
    pub(crate) requests: [Arc<Shares>; 2],
    /// The one request of the daemon that continues while readers of containers wait.
    pub(crate) beside_readers: Arc<Shares>,
    pub(crate) memory: Arc<Shares>,
    pub(crate) slabs: Arc<Slabs>,
    pub(crate) speed: SpeedLimits,
    /// When the first byte must have come; `None`: counted from the first request.
    pub(crate) first_byte: Option<Deadline>,
    pub(crate) demand: Option<Demand>,
    pub(crate) progress: Arc<LayerProgress>,
    /// Dropped when the download ends.
    pub(crate) _slot: Option<Slot>,
}

/// A download under way. Dropping it ends it.
pub(crate) struct Download {
    blob: RemoteBlob,
    chunks: mpsc::UnboundedReceiver<Pieces>,
    current: Option<Pieces>,
    failure: Arc<Failure>,
    task: AbortOnDropHandle<()>,
}

/// The first failure.
#[derive(Debug, Default)]
pub(crate) struct Failure {
    error: OnceLock<RegistryError>,
    noticed: CancellationToken,
    /// The first bytes have come, or there was a failure.
    settled: CancellationToken,
}

impl Failure {
    fn set(&self, error: &RegistryError) {
        let _ = self.error.set(error.clone());
        self.noticed.cancel();
        self.settled.cancel();
    }

    /// Waits for the first bytes, and returns whether there is none so far.
    pub(crate) async fn none_at_start(&self) -> bool {
        self.settled.cancelled().await;
        !self.noticed.is_cancelled()
    }

    /// Waits for a failure.
    pub(crate) async fn wait(&self) -> RegistryError {
        loop {
            self.noticed.cancelled().await;
            if let Some(error) = self.error.get() {
                return error.clone();
            }
        }
    }
}

impl Download {
    /// Begins a download on the current runtime.
    pub(crate) fn begin(plan: Plan) -> Self {
        let (sender, chunks) = mpsc::unbounded_channel();
        let failure = Arc::new(Failure::default());
        let blob = plan.blob.clone();
        let requests = Requests {
            plan: Arc::new(plan),
            arrived: Arc::default(),
            failure: Arc::clone(&failure),
        };
        let task =
            AbortOnDropHandle::new(tokio::spawn(requests.make_all(sender).in_current_span()));
        Self {
            blob,
            chunks,
            current: None,
            failure,
            task,
        }
    }

    /// The blob that is downloaded.
    pub(crate) const fn blob(&self) -> &RemoteBlob {
        &self.blob
    }

    /// Notices a failure before its bytes are read.
    pub(crate) fn failure(&self) -> Arc<Failure> {
        Arc::clone(&self.failure)
    }

    /// Returns what ends it, also while another thread waits for its next bytes, which finds no more of them.
    pub(crate) fn ender(&self) -> AbortHandle {
        self.task.abort_handle()
    }

    /// Waits for the next bytes; `None` when there are no more. Not on a thread of the runtime.
    pub(crate) fn next(&mut self) -> Option<Result<Piece, RegistryError>> {
        loop {
            if let Some(pieces) = &mut self.current
                && let Some(piece) = pieces.blocking_recv()
            {
                return Some(piece);
            }
            self.current = Some(self.chunks.blocking_recv()?);
        }
    }
}

/// Makes the requests of a layer.
struct Requests {
    plan: Arc<Plan>,
    /// Bytes of the layer that have come.
    arrived: Arc<AtomicU64>,
    failure: Arc<Failure>,
}

/// How many requests a registry takes: fewer after retries, more after a while without.
struct Parallel {
    now: usize,
    most: usize,
    retries: u64,
    clean: u32,
}

impl Parallel {
    fn note(&mut self, retries: u64) {
        if retries > self.retries {
            self.retries = retries;
            self.now = (self.now / 2).max(1);
            self.clean = 0;
            return;
        }
        self.clean += 1;
        if self.clean >= CLEAN {
            self.now = (self.now + 1).min(self.most);
            self.clean = 0;
        }
    }
}

impl Requests {
    async fn make_all(self, order: mpsc::UnboundedSender<Pieces>) {
        let plan = &self.plan;
        let mut under_way = JoinSet::new();
        let mut parallel = Parallel {
            now: plan.parallel.max(1),
            most: plan.parallel.max(1),
            retries: plan.blob.retry_count(),
            clean: 0,
        };
        let mut offset = 0;
        while offset < plan.size {
            parallel.note(plan.blob.retry_count());
            self.turn(&mut under_way, parallel.now).await;
            let mut range = self.range(offset);
            let window = (range.end - range.start).min(self.window());
            let memory = plan.memory.acquire(plan.claim, memory_of(window)).await;
            let waiting = Instant::now();
            let permits = Permits::acquire(plan).await;
            let waited = waiting.elapsed();
            // Each piece but the last has this many bytes at least.
            let pieces = usize::try_from(window / PIECE as u64).unwrap_or(1) + 2;
            let (sender, receiver) = mpsc::channel(pieces);
            if order.send(receiver).is_err() || self.failure.noticed.is_cancelled() {
                return;
            }
            let mut stream = None;
            if offset == 0 {
                // It shows where the blob is, with which credentials, and whether ranges are honoured.
                let opened = self.open_first(&mut range, waited).await;
                match opened {
                    Ok(opened) => {
                        stream = Some(opened);
                        self.failure.settled.cancel();
                    }
                    Err(error) => {
                        self.failure.set(&error);
                        let _ = sender.send(Err(error)).await;
                        return;
                    }
                }
            }
            let request = Request {
                plan: Arc::clone(plan),
                arrived: Arc::clone(&self.arrived),
                failure: Arc::clone(&self.failure),
                range: range.clone(),
                memory: Arc::new(memory),
                permits: Some(permits),
                sender,
                waited: Duration::ZERO,
                seen: 0,
            };
            under_way.spawn(request.make(stream).in_current_span());
            offset = range.end;
        }
        // Also of a layer without bytes.
        self.failure.settled.cancel();
        while under_way.join_next().await.is_some() {}
    }

    /// Waits until one more request of the layer may be made.
    async fn turn(&self, under_way: &mut JoinSet<()>, most: usize) {
        loop {
            while under_way.try_join_next().is_some() {}
            if under_way.len() < most {
                return;
            }
            under_way.join_next().await;
        }
    }

    /// The next range to request.
    fn range(&self, offset: u64) -> Range<u64> {
        let plan = &self.plan;
        let rest = offset..plan.size;
        // A host that ignores ranges sends everything each time.
        let Some(chunk) = plan.chunk.filter(|_| !plan.blob.ignores_ranges()) else {
            return rest;
        };
        let end = offset.saturating_add(chunk).min(plan.size);
        // No request for a few last bytes.
        if plan.size - end < chunk / 8 {
            return rest;
        }
        offset..end
    }

    /// Most memory of a request. Half of all is left, so that a layer that is unpacked gets its part
    /// although others have the other half.
    fn window(&self) -> u64 {
        let largest = self.plan.chunk.unwrap_or(0);
        let total = self.plan.memory.total();
        largest
            .saturating_add(largest / 8)
            .clamp(WINDOW, (total / 4).max(WINDOW))
            .min(total / 2)
            .max(1)
    }

    /// Opens the first request, which was held up for `waited`. If its host ignores ranges, everything is
    /// requested.
    async fn open_first(
        &self,
        range: &mut Range<u64>,
        waited: Duration,
    ) -> Result<ByteStream, RegistryError> {
        let plan = &self.plan;
        let began = Instant::now();
        // That other requests and readers came first is not the registry's fault.
        let deadline = plan
            .first_byte
            .filter(|_| waited < DEMAND_LOOK)
            .unwrap_or_else(|| Deadline::after(plan.speed.first_byte));
        let whole = 0..plan.size;
        let open = async {
            plan.progress.requests.fetch_add(1, Ordering::Relaxed);
            let stream = plan.blob.stream_part(range.clone(), plan.speed.period);
            let mut stream = Box::pin(stream).await?;
            if *range != whole && plan.blob.ignores_ranges() {
                drop(stream);
                *range = whole;
                stream = Box::pin(plan.blob.stream_part(range.clone(), plan.speed.period)).await?;
            }
            let first = stream.next().await.transpose()?;
            let first = futures::stream::iter(first.map(Ok));
            Ok(first.chain(stream).boxed())
        };
        deadline.limit(open).await.unwrap_or_else(|_| {
            Err(RegistryError::TooSlow {
                what: plan.blob.describe(),
                bytes: 0,
                least: 1,
                period: began.elapsed(),
            })
        })
    }
}

/// Most bytes of a request of a layer, and how many there are at a time, where the configuration allows
/// `chunk` and `limit`. All together hold half of the memory: the other half is for what has come and waits
/// for the layer's threads, or the link would idle whenever these wait for the disk. Where that is too little
/// for `limit` of them, there are as few as bring what the cores can use: smaller ones would share the link no
/// better, and each costs the registry a look-up and a wait for its first byte.
pub(crate) fn requests_of_layer(
    memory: u64,
    cores: usize,
    chunk: Option<u64>,
    limit: usize,
) -> (Option<u64>, usize) {
    let (half, limit) = (memory / 2, limit.max(1));
    let each = |requests: usize| room_in(half / requests as u64);
    let Some(chunk) = chunk.filter(|chunk| *chunk > each(limit)) else {
        return (chunk, limit);
    };
    let enough = REQUESTS_OF_CORE.saturating_mul(cores.max(1)).min(limit);
    let bytes = chunk.min(each(enough));
    let fit = usize::try_from(half / memory_of(bytes)).unwrap_or(limit);
    (Some(bytes), fit.clamp(1, limit))
}

/// What a request holds while bytes of it arrive.
struct Permits {
    /// Units of the image and of the daemon.
    _units: [Units; 2],
    /// It is the one that continues while readers wait.
    beside_readers: Option<Units>,
}

impl Permits {
    /// Waits until the image and the daemon make fewer requests than they may, and for readers of
    /// containers: while one waits for the network, one request of the daemon continues, so that pulls
    /// are not starved.
    async fn acquire(plan: &Plan) -> Self {
        let beside_readers = Self::wait_for_readers(plan).await;
        let [image, all] = &plan.requests;
        let image = image.acquire(plan.claim, 1).await;
        Self {
            _units: [image, all.acquire(plan.claim, 1).await],
            beside_readers,
        }
    }

    async fn wait_for_readers(plan: &Plan) -> Option<Units> {
        loop {
            if !readers_wait(plan) {
                return None;
            }
            tokio::select! {
                unit = plan.beside_readers.acquire(plan.claim, 1) => return Some(unit),
                () = tokio::time::sleep(DEMAND_LOOK) => {}
            }
        }
    }

    /// Whether the request has to wait for readers.
    fn yields(&self, plan: &Plan) -> bool {
        self.beside_readers.is_none() && readers_wait(plan)
    }
}

fn readers_wait(plan: &Plan) -> bool {
    plan.demand.as_ref().is_some_and(Demand::waits)
}

/// One request.
struct Request {
    plan: Arc<Plan>,
    arrived: Arc<AtomicU64>,
    failure: Arc<Failure>,
    range: Range<u64>,
    memory: Arc<Units>,
    permits: Option<Permits>,
    sender: mpsc::Sender<Result<Piece, RegistryError>>,
    /// How long this request waited for bytes, and the bytes of the layer that had come before.
    waited: Duration,
    seen: u64,
}

impl Request {
    async fn make(mut self, stream: Option<ByteStream>) {
        if let Err(error) = self.receive(stream).await {
            self.failure.set(&error);
            let _ = self.sender.send(Err(error)).await;
        }
    }

    async fn receive(&mut self, stream: Option<ByteStream>) -> Result<(), RegistryError> {
        let plan = Arc::clone(&self.plan);
        self.seen = self.arrived.load(Ordering::Relaxed);
        let mut stream = match stream {
            Some(stream) => stream,
            None => {
                plan.progress.requests.fetch_add(1, Ordering::Relaxed);
                let open = plan.blob.stream_part(self.range.clone(), plan.speed.period);
                Box::pin(open).await?
            }
        };
        let mut buffer = PieceBuffer::new(Arc::clone(&plan.slabs));
        while let Some(bytes) = self.next(&mut stream).await? {
            let arrived = bytes.len() as u64;
            self.arrived.fetch_add(arrived, Ordering::Relaxed);
            plan.progress
                .downloaded
                .fetch_add(arrived, Ordering::Relaxed);
            if let Some(piece) = buffer.add(&bytes) {
                soci_faults::point("unpack-bytes-arrived");
                if !self.pass_on(piece).await {
                    return Ok(());
                }
            }
        }
        let rest = buffer.finish();
        if !rest.is_empty() {
            self.pass_on(rest).await;
        }
        Ok(())
    }

    /// Passes bytes on. While there is no room for them, or while readers of containers wait, the request is
    /// not under way. `false` if nothing reads them any more.
    async fn pass_on(&mut self, bytes: Bytes) -> bool {
        let piece = Piece {
            bytes,
            _memory: Some(Arc::clone(&self.memory)),
        };
        let sent = match self.sender.try_send(Ok(piece)) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Closed(_)) => false,
            Err(mpsc::error::TrySendError::Full(piece)) => {
                self.permits = None;
                self.sender.send(piece).await.is_ok()
            }
        };
        let permits = self.permits.take();
        self.permits = match permits.filter(|permits| !permits.yields(&self.plan)) {
            Some(permits) => Some(permits),
            None if sent => Some(Permits::acquire(&self.plan).await),
            None => None,
        };
        sent
    }

    /// Waits for the next bytes, unless the layer comes too slowly.
    async fn next(&mut self, stream: &mut ByteStream) -> Result<Option<Bytes>, RegistryError> {
        let speed = self.plan.speed;
        loop {
            let began = Instant::now();
            let left = speed.period.saturating_sub(self.waited);
            let next = tokio::time::timeout(left, stream.next()).await;
            self.waited += began.elapsed();
            let next = match next {
                Ok(next) if self.waited < speed.period || next.is_none() => {
                    return next.transpose();
                }
                Ok(next) => Some(next),
                Err(_) => None,
            };
            let arrived = self.arrived.load(Ordering::Relaxed);
            let bytes = arrived.saturating_sub(self.seen);
            let least = speed.floor.saturating_mul(speed.period.as_secs());
            if bytes < least {
                return Err(RegistryError::TooSlow {
                    what: self.plan.blob.describe(),
                    bytes,
                    least,
                    period: self.waited,
                });
            }
            (self.waited, self.seen) = (Duration::ZERO, arrived);
            if let Some(next) = next {
                return next.transpose();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_leave_half_of_the_memory_to_what_has_come() {
        for (memory, cores, limit) in [
            (60 << 20, 2, 20),
            (60 << 20, 2, 3),
            (100 << 20, 4, 20),
            (300 << 20, 16, 20),
            (12 << 20, 1, 4),
        ] {
            let (bytes, requests) = requests_of_layer(memory, cores, Some(1 << 30), limit);
            let bytes = bytes.unwrap();
            let all = memory_of(bytes) * requests as u64;
            assert!(all <= memory / 2 && all >= memory / 4, "{memory}: {bytes}");
            assert!(requests <= limit, "{memory}: {requests}");
        }
        // One is always possible.
        let least = requests_of_layer(0, 0, Some(1 << 30), 0);
        assert_eq!(least, (Some(room_in(0)), 1));
    }

    #[test]
    fn few_cores_make_few_requests_that_are_worth_making() {
        // The configuration of EKS AMIs on two cores.
        let (bytes, requests) = requests_of_layer(60 << 20, 2, Some(16 << 20), 20);
        assert_eq!((bytes.unwrap() >> 18, requests), (26, 4));
        // What fits is requested as configured.
        let small = Some(512 << 10);
        assert_eq!(requests_of_layer(60 << 20, 2, small, 20), (small, 20));
        assert_eq!(requests_of_layer(60 << 20, 2, None, 20), (None, 20));
        // As many as fit, of those that are a little too large for all.
        let between = Some(2 << 20);
        assert_eq!(requests_of_layer(60 << 20, 2, between, 20), (between, 9));
    }
}
