//! The driver of the schedule: carries out its effects, with tasks for requests and threads for
//! inflating.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::future::{AbortHandle, Abortable};
use parking_lot::Mutex;
use soci_ztoc::SpanId;
use tokio::runtime::Handle;
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::background_queue::BackgroundQueue;
use crate::context::{Context, LayerSchedule};
use crate::inflate_pool::InflatePool;
use crate::pending_read::PendingRead;
use crate::priority::Priority;
use crate::read_error::Cause;
use crate::request::{ServedRequest, fetch_span, receive};
use crate::request_error::read_error;
use crate::schedule::{CircuitChange, Effect, FailedSpan, Health, Outcome, RequestId};
use crate::served_layer::ServedLayer;
use crate::span_work::{SpanFailure, SpanWork};
use crate::{FailureClass, FetchConfig, LayerFailure, ReadError};

/// An effect of the schedule of served layers.
type LayerEffect = Effect<Arc<ServedLayer>, Arc<PendingRead>>;

/// The driver of a fetcher.
pub(crate) struct Driver {
    pub(crate) context: Context,
    pub(crate) background: BackgroundQueue,
    runtime: Handle,
    pool: InflatePool,
    tasks: Mutex<HashMap<RequestId, AbortHandle>>,
}

/// Reports the end of a request to the schedule when its task is dropped: aborted because the layer
/// was closed, refused by a runtime that shuts down, or by a panic.
struct EndGuard {
    driver: Arc<Driver>,
    layer: Arc<ServedLayer>,
    request: Option<RequestId>,
    started: bool,
}

impl Drop for EndGuard {
    fn drop(&mut self) {
        let Some(request) = self.request.take() else {
            return;
        };
        if !self.started && !self.layer.is_closed() {
            // The runtime has shut down and runs no other task either.
            self.driver.stop();
        }
        let abandoned = Outcome::Broken {
            transient: false,
            health: Health::Unknown,
            error: &|_| ReadError::Abandoned,
        };
        self.driver.ended(request, &abandoned);
    }
}

/// Work on a span. Dropped before its end, it fails the span.
struct SpanGuard {
    driver: Arc<Driver>,
    work: SpanWork,
    done: bool,
}

impl Drop for SpanGuard {
    fn drop(&mut self) {
        if !self.done {
            self.fail(ReadError::Abandoned);
        }
    }
}

impl SpanGuard {
    fn disarm(mut self) {
        self.done = true;
    }

    fn fail(&mut self, error: ReadError) {
        self.done = true;
        let key = self.work.layer.key(self.work.span);
        self.driver
            .apply(|schedule, now| schedule.fail(key, error, now));
    }
}

impl Driver {
    pub(crate) fn new(config: FetchConfig, runtime: Handle) -> Arc<Self> {
        let threads = config
            .inflate_threads
            .or_else(|| std::thread::available_parallelism().ok().map(usize::from))
            .unwrap_or(1)
            .max(1);
        Arc::new(Self {
            background: BackgroundQueue::new(config.background.clone()),
            context: Context::new(config),
            runtime,
            pool: InflatePool::new(threads),
            tasks: Mutex::default(),
        })
    }

    /// Changes the schedule, starts the requests that may be in flight now, and carries out the
    /// effects, without the lock.
    pub(crate) fn apply(
        self: &Arc<Self>,
        change: impl FnOnce(&mut LayerSchedule, Instant) -> Vec<LayerEffect>,
    ) {
        let conditions = self.context.conditions();
        let effects = {
            let mut schedule = self.context.schedule.lock();
            let mut effects = change(&mut schedule, conditions.now);
            effects.extend(schedule.start_requests(conditions));
            effects
        };
        self.carry_out(effects);
    }

    pub(crate) fn carry_out(self: &Arc<Self>, effects: Vec<LayerEffect>) {
        for effect in effects {
            match effect {
                Effect::Start(request) => self.start(request),
                Effect::Abort(request) => self.abort(request),
                Effect::Hasten(span) => self.pool.hasten(span),
                Effect::Fail(failed) => self.report(failed),
                Effect::AnswerClosed(waiters) => waiters
                    .into_iter()
                    .for_each(|waiter| waiter.fail(ReadError::Closed)),
                Effect::Forget(waiters) => drop(waiters),
                Effect::Circuit(change) => self.report_circuit(&change),
            }
        }
    }

    /// Starts the requests that may be in flight now.
    pub(crate) fn pump(self: &Arc<Self>) {
        self.apply(|_, _| Vec::new());
    }

    /// Wants spans that no reader waits for, and starts requests.
    pub(crate) fn want_all(
        self: &Arc<Self>,
        layer: &ServedLayer,
        spans: impl IntoIterator<Item = u32>,
        priority: Priority,
    ) {
        self.apply(|schedule, now| {
            for span in spans {
                let is_stored = layer.is_stored(span);
                schedule.want(layer.key(span), priority, None, is_stored, now);
            }
            Vec::new()
        });
    }

    fn start(self: &Arc<Self>, request: ServedRequest) {
        let counters = self.context.counters.of(request.priority);
        counters.requests.fetch_add(1, Ordering::Relaxed);
        let (id, layer) = (request.id, request.layer.clone());
        let blob = layer.source.describe();
        let image = blob.split('@').next().unwrap_or_default();
        // At the level of errors: no log level removes the fields from warnings. Without a parent: the
        // request that ended, or the read that came, may be of another layer.
        let trace = tracing::error_span!(
            parent: None,
            "fetch",
            layer = %layer.stored.digest(),
            image,
            spans = ?request.spans,
        );
        // Known before the task runs: it may end before `spawn` returns.
        let (abort, registration) = AbortHandle::new_pair();
        self.tasks.lock().insert(id, abort);
        let guard = EndGuard {
            driver: self.clone(),
            layer: layer.clone(),
            request: Some(id),
            started: false,
        };
        let task = transfer(guard, request).instrument(trace);
        self.runtime.spawn(Abortable::new(task, registration));
        if layer.is_closed() {
            // Closed after the schedule returned the request.
            self.abort(id);
        }
    }

    fn abort(&self, request: RequestId) {
        let abort = self.tasks.lock().get(&request).cloned();
        if let Some(abort) = abort {
            abort.abort();
        }
    }

    fn ended(self: &Arc<Self>, request: RequestId, outcome: &Outcome<'_>) {
        self.tasks.lock().remove(&request);
        self.apply(|schedule, now| schedule.ended(request, outcome, now));
    }

    /// Lowers the request limit of the origin if the registry client had to retry.
    fn note_retries(&self, layer: &ServedLayer) {
        if layer.was_retried() {
            self.overloaded(layer);
        }
    }

    fn overloaded(&self, layer: &ServedLayer) {
        let mut schedule = self.context.schedule.lock();
        schedule.overloaded(layer.id, Instant::now());
    }

    /// Hands a span to the inflate threads, which verify and deliver it.
    fn inflate(self: &Arc<Self>, mut guard: SpanGuard, compressed: Bytes) {
        let (driver, priority) = (self.clone(), guard.work.priority);
        let span = guard.work.layer.key(guard.work.span);
        let work = move |buffer: &mut Vec<u8>| {
            let trace = guard.work.trace.clone();
            let _entered = trace.enter();
            match guard.work.run(&driver.context, compressed, buffer) {
                Ok(()) => guard.disarm(),
                Err(SpanFailure::Refetch) => {
                    let refetch = refetch(driver.clone(), guard).instrument(trace.clone());
                    driver.runtime.spawn(refetch);
                }
                Err(SpanFailure::Final(error)) => guard.fail(error),
            }
        };
        self.pool.submit(priority, span, Box::new(work));
        // A reader that came after the span arrived did not find it in the pool.
        let now = || self.context.schedule.lock().priority(span);
        if priority != Priority::Demand && now() == Some(Priority::Demand) {
            self.pool.hasten(span);
        }
    }

    /// Reports a span that cannot be had: to its readers, the layer's state and the log.
    fn report(&self, failed: FailedSpan<Arc<ServedLayer>, Arc<PendingRead>>) {
        let (layer, error) = (failed.layer, failed.error);
        if failed.priority.is_background() {
            layer.fill_progress.failed();
        }
        if failed.reported {
            let counters = &self.context.counters;
            counters.spans_failed.fetch_add(1, Ordering::Relaxed);
            let failure = LayerFailure::of(&error);
            if failure.class != FailureClass::Local {
                layer.stored.standing().note_source(false);
            }
            if layer.set_error(failure)
                && let Some(held_back) = self.context.log_limit.pass()
            {
                tracing::error!(layer = %layer.stored.digest(), error = %error, held_back, "cannot serve span");
            }
        }
        for waiter in failed.waiters {
            waiter.fail(error.clone());
        }
    }

    fn report_circuit(&self, change: &CircuitChange) {
        let Some(held_back) = self.context.log_limit.pass() else {
            return;
        };
        let origin = &change.origin;
        match &change.opened {
            Some((failures, error)) => {
                tracing::warn!(%origin, failures, %error, held_back, "origin does not answer, its readers get errors immediately");
            }
            None => tracing::info!(%origin, held_back, "origin answers again"),
        }
    }

    /// Stops all work for a layer and answers its readers.
    pub(crate) fn close(self: &Arc<Self>, layer: &ServedLayer) {
        if !layer.close() {
            return;
        }
        self.background.remove(layer.id);
        self.context.unsaved.remove(layer.id);
        self.apply(|schedule, _| schedule.close(layer.id));
    }

    /// Closes all layers and refuses new ones; returns them.
    pub(crate) fn stop(self: &Arc<Self>) -> Vec<Arc<ServedLayer>> {
        let layers = self.context.schedule.lock().stop();
        self.background.stop();
        for layer in &layers {
            self.close(layer);
        }
        layers
    }
}

/// The task of a request.
async fn transfer(mut guard: EndGuard, request: ServedRequest) {
    guard.started = true;
    let (driver, layer) = (guard.driver.clone(), &request.layer);
    let mut brought = 0;
    let deliver = |work, bytes| {
        let guard = SpanGuard {
            driver: driver.clone(),
            work,
            done: false,
        };
        driver.inflate(guard, bytes);
    };
    let result = receive(&driver.context, &request, &mut brought, deliver).await;
    guard.request = None;
    driver.note_retries(layer);
    let Err(error) = result else {
        return driver.ended(request.id, &Outcome::Completed);
    };
    if error.is_overload() {
        driver.overloaded(layer);
    }
    let gave_way = match request.priority {
        Priority::Background => error.throttle(),
        _ => None,
    };
    if let Some(wait) = gave_way {
        let mut schedule = driver.context.schedule.lock();
        schedule.throttled(layer.id, wait, Instant::now());
    }
    if let Some(held_back) = driver.context.log_limit.pass() {
        tracing::warn!(brought, error = %error, held_back, "range request failed");
    }
    let (transient, health) = (error.is_transient(), error.health());
    let cause: Cause = Arc::new(error);
    let broken = Outcome::Broken {
        transient,
        // An origin that has too many requests, and was not asked again, does not fail readers.
        health: match gave_way {
            Some(_) => Health::Unknown,
            None => health(&cause),
        },
        error: &read_error(cause, layer.source.describe()),
    };
    driver.ended(request.id, &broken);
}

/// Fetches a span that failed verification once more, alone.
async fn refetch(driver: Arc<Driver>, mut guard: SpanGuard) {
    let layer = guard.work.layer.clone();
    let Some(span) = layer.spans.get(SpanId(guard.work.span)) else {
        return;
    };
    let counters = driver.context.counters.of(guard.work.priority);
    counters.requests.fetch_add(1, Ordering::Relaxed);
    match fetch_span(&driver.context, &layer, &span).await {
        Ok(bytes) => {
            let length = bytes.len() as u64;
            counters.bytes.fetch_add(length, Ordering::Relaxed);
            driver.inflate(guard, bytes);
        }
        Err(error) => {
            let error = read_error(Arc::new(error), layer.source.describe());
            guard.fail(error(guard.work.span));
        }
    }
}
