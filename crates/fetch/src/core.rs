//! The heart of the fetcher: connects the schedule, the requests, the inflate pool and the readers.

use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use parking_lot::Mutex;
use soci_store::ReadOutcome;
use soci_telemetry::LogLimit;
use soci_ztoc::SpanId;
use tokio::runtime::Handle;

use crate::background::Queue;
use crate::budget::{Budget, Permit, What};
use crate::inflate_pool::InflatePool;
use crate::layer::Layer;
use crate::pending_read::PendingRead;
use crate::priority::Priority;
use crate::request;
use crate::schedule::{Broken, Failed, Schedule, Waiters, Wish};
use crate::stats::Counters;
use crate::unsaved::Unsaved;
use crate::{FetchConfig, ReadDone, ReadError};

/// How often a read looks again for spans that go away while it waits (they are damaged, or
/// reclaimed).
const ROUNDS: usize = 8;
/// After the store could not take a span, nothing is fetched ahead of readers for this long.
const STORE_PAUSE: Duration = Duration::from_secs(10);

/// The fetcher, as its requests and threads see it.
pub(crate) struct Core {
    pub(crate) config: FetchConfig,
    pub(crate) runtime: Handle,
    pub(crate) budget: Arc<Budget>,
    pub(crate) pool: InflatePool,
    pub(crate) schedule: Mutex<Schedule>,
    pub(crate) counters: Counters,
    pub(crate) background: Queue,
    pub(crate) unsaved: Unsaved,
    pub(crate) next_layer: AtomicU64,
    /// Of all lines about what cannot be fetched.
    pub(crate) log_limit: LogLimit,
    started: Instant,
    /// Of the last mount or read that needed the network, in milliseconds since `started`.
    active: AtomicU64,
    /// Until when the store takes no spans that nobody waits for, in milliseconds since `started`.
    store_pause: AtomicU64,
    /// How often the registry client had to try again, when that was last looked at.
    retries: AtomicU64,
}

impl Core {
    pub(crate) fn new(config: FetchConfig, runtime: Handle) -> Arc<Self> {
        let threads = config
            .inflate_threads
            .or_else(|| std::thread::available_parallelism().ok().map(usize::from))
            .unwrap_or(1)
            .max(1);
        Arc::new(Self {
            budget: Budget::new(config.memory_budget),
            pool: InflatePool::new(threads),
            schedule: Mutex::new(Schedule::new(config.max_inflight, config.max_request_bytes)),
            counters: Counters::default(),
            background: Queue::new(config.background.clone()),
            unsaved: Unsaved::new(config.memory_budget / 4),
            next_layer: AtomicU64::new(0),
            log_limit: LogLimit::default(),
            started: Instant::now(),
            active: AtomicU64::new(0),
            store_pause: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            config,
            runtime,
        })
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Somebody mounted, or had to wait for the network.
    pub(crate) fn active(&self) {
        self.active.store(self.millis(), Ordering::Relaxed);
    }

    /// Has it been quiet for long enough for work that nobody waits for?
    pub(crate) fn is_quiet(&self) -> bool {
        let quiet = self
            .millis()
            .saturating_sub(self.active.load(Ordering::Relaxed));
        u128::from(quiet) >= self.config.background.silence_period.as_millis()
    }

    pub(crate) fn store_failed(&self) {
        let pause = u64::try_from(STORE_PAUSE.as_millis()).unwrap_or(u64::MAX);
        self.store_pause
            .store(self.millis().saturating_add(pause), Ordering::Relaxed);
    }

    pub(crate) fn store_takes_more(&self) -> bool {
        self.millis() >= self.store_pause.load(Ordering::Relaxed)
    }

    /// Waits for memory. Spans that are kept only because they could not be stored make way.
    pub(crate) async fn memory(&self, bytes: u64, priority: Priority, what: What) -> Permit {
        let mut permit = pin!(self.budget.acquire(bytes, priority, what));
        if let Some(permit) = permit.as_mut().now_or_never() {
            return permit;
        }
        // In the queue by now: what is kept from here on sees that somebody waits.
        self.unsaved.clear();
        // A reader may have come just before; those that come from here on hasten it themselves.
        let now = self.schedule.lock().priority(what);
        if let Some(now) = now.filter(|now| *now < priority) {
            self.budget.hasten(what, now);
        }
        permit.await
    }

    /// Lets waits for memory be as urgent as what they are for has become.
    fn hasten_memory(&self, layer: &Layer) {
        for what in self.budget.waited_for(layer.number) {
            let now = self.schedule.lock().priority(what);
            if let Some(now) = now {
                self.budget.hasten(what, now);
            }
        }
    }

    /// The client behind a layer retries by itself; asks for less at once when it had to.
    pub(crate) fn note_retries(&self, layer: &Layer) {
        let retries = layer.source.retry_count();
        if self.retries.fetch_max(retries, Ordering::Relaxed) < retries {
            self.schedule.lock().limit.overloaded(Instant::now());
        }
    }

    /// Makes the requests that may be made now.
    pub(crate) fn pump(self: &Arc<Self>) {
        loop {
            let quiet = self.is_quiet();
            let Some(request) = self.schedule.lock().next_request(quiet) else {
                return;
            };
            let id = request.id;
            self.counters
                .of(request.priority)
                .requests
                .fetch_add(1, Ordering::Relaxed);
            let task = self.runtime.spawn(request::run(self.clone(), request));
            self.schedule.lock().started(id, task.abort_handle());
        }
    }

    /// Notes where a reader is, and fetches ahead of it if it is a sequential one.
    pub(crate) fn note_read(self: &Arc<Self>, layer: &Layer, read: Range<u64>) {
        let ahead = {
            let mut streams = layer.streams.lock();
            streams.note(read, &layer.spans, self.config.max_readahead)
        };
        if let Some(ahead) = ahead {
            self.want_all(layer, ahead, Priority::Readahead);
        }
    }

    /// Asks for spans that nobody waits for.
    pub(crate) fn want_all(self: &Arc<Self>, layer: &Layer, spans: Range<u32>, priority: Priority) {
        if !self.store_takes_more() || layer.is_closed() {
            return;
        }
        {
            let mut schedule = self.schedule.lock();
            for span in spans {
                schedule.want(layer, span, priority, None);
            }
        }
        self.pump();
    }

    /// Reads, fetching what is not here.
    pub(crate) fn read(self: &Arc<Self>, layer: &Layer, range: Range<u64>, done: ReadDone) {
        let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let read = Arc::new(PendingRead::new(range.start, len, done));
        let mut needed: Vec<u32> = layer.spans.covering(range).collect();
        for _ in 0..ROUNDS {
            let mut here = Vec::new();
            let mut failed = None;
            {
                let mut schedule = self.schedule.lock();
                for span in needed {
                    if self.unsaved.fill(layer, span, &read) {
                        continue;
                    }
                    match schedule.want(layer, span, Priority::Demand, Some(&read)) {
                        Wish::Here => here.push(span),
                        Wish::Coming => {}
                        Wish::Failed(error) => failed = Some(error),
                    }
                }
            }
            if let Some(error) = failed {
                return read.fail(error);
            }
            self.active();
            self.hasten_memory(layer);
            needed = here
                .into_iter()
                .filter(|span| !self.fill_from_store(layer, *span, &read))
                .collect();
            if needed.is_empty() {
                self.pump();
                return read.arrived();
            }
        }
        let reason =
            "its spans went away as often as they came; is the layer store's budget too small?";
        read.fail(ReadError::Store(format!(
            "{}: {reason}",
            layer.source.describe()
        )));
    }

    fn fill_from_store(&self, layer: &Layer, span: u32, read: &PendingRead) -> bool {
        let Some(span) = layer.spans.get(SpanId(span)) else {
            return false;
        };
        let filled = read.fill_with(span.uncompressed, |at, part| layer.stored.read_at(at, part));
        matches!(filled, Some(Ok(ReadOutcome::Filled)))
    }

    /// A request is over.
    pub(crate) fn ended(self: &Arc<Self>, request: u64, layer: &Layer, broken: Option<Broken<'_>>) {
        let until = Instant::now() + self.config.negative_backoff;
        let failed = self.schedule.lock().ended(request, broken, until);
        for Failed { error, waiters } in failed {
            self.tell(layer, &error, waiters);
        }
        self.pump();
    }

    /// A span cannot be had.
    pub(crate) fn fail(&self, layer: &Layer, span: u32, error: &ReadError) {
        let until = Instant::now() + self.config.negative_backoff;
        let waiters = self.schedule.lock().fail(layer.number, span, error, until);
        self.tell(layer, error, waiters);
    }

    /// Tells those who wait, the layer's state and the log.
    fn tell(&self, layer: &Layer, error: &ReadError, waiters: Waiters) {
        if layer.is_closed() {
            waiters
                .into_iter()
                .for_each(|waiter| waiter.fail(ReadError::Closed));
            return;
        }
        self.counters.spans_failed.fetch_add(1, Ordering::Relaxed);
        if layer.set_error(error.to_string())
            && let Some(held_back) = self.log_limit.pass()
        {
            tracing::error!(layer = %layer.stored.digest(), error = %error, held_back, "a span cannot be served");
        }
        waiters
            .into_iter()
            .for_each(|waiter| waiter.fail(error.clone()));
    }

    /// Stops all work for a layer and answers who waits.
    pub(crate) fn close(self: &Arc<Self>, layer: &Layer) {
        if !layer.close() {
            return;
        }
        self.background.remove(layer.number);
        self.unsaved.remove(layer.number);
        let (waiters, requests) = self.schedule.lock().close(layer.number);
        requests.into_iter().for_each(|request| request.abort());
        waiters
            .into_iter()
            .for_each(|waiter| waiter.fail(ReadError::Closed));
        self.pump();
    }

    /// Closes everything.
    pub(crate) fn stop(self: &Arc<Self>) -> Vec<Arc<Layer>> {
        let layers = {
            let mut schedule = self.schedule.lock();
            schedule.stopped = true;
            schedule.layers()
        };
        self.background.stop();
        for layer in &layers {
            self.close(layer);
        }
        layers
    }
}
