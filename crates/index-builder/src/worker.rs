//! Workers: each takes a job, has it carried out, and records what came of it.

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::indexer::index_in_order;
use crate::service::Metrics;
use crate::{Claim, Failure, Finish, ImageIndexer, Job, Queue, QueueError, WorkerId};

/// Longest pause before the queue is looked at again: other processes add jobs too.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Pause after the queue could not be used.
const AFTER_TROUBLE: Duration = Duration::from_secs(2);
/// Failures of the queue in a row after which a pool ends that ends when the queue is empty.
const MAX_TROUBLE: u32 = 30;

/// How jobs are carried out.
#[derive(Debug, Clone)]
pub struct PoolSettings {
    /// Jobs carried out at a time.
    pub workers: NonZeroUsize,
    /// Attempts after which a job is given up.
    pub max_attempts: NonZeroU32,
    /// Pause after the first failure; it doubles with each further one.
    pub min_pause: Duration,
    /// Longest pause.
    pub max_pause: Duration,
    /// Longest time of an attempt.
    pub job_timeout: Duration,
    /// Time that jobs under way have when the pool is stopped.
    pub grace: Duration,
    /// Whether the pool ends when no job waits or runs.
    pub until_empty: bool,
}

impl Default for PoolSettings {
    fn default() -> Self {
        Self {
            workers: NonZeroUsize::MIN.saturating_add(1),
            max_attempts: NonZeroU32::MIN.saturating_add(7),
            min_pause: Duration::from_secs(1),
            max_pause: Duration::from_secs(300),
            job_timeout: Duration::from_secs(3600),
            grace: Duration::from_secs(20),
            until_empty: false,
        }
    }
}

/// A pool of workers on a queue.
pub struct WorkerPool {
    queue: Queue,
    id: WorkerId,
    indexer: Arc<dyn ImageIndexer>,
    settings: PoolSettings,
    metrics: Option<Arc<Metrics>>,
    /// Wakes the workers when a job was added or has ended.
    wake: Notify,
}

impl std::fmt::Debug for WorkerPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl WorkerPool {
    /// Creates a pool; it works once [`WorkerPool::run`] is polled.
    ///
    /// # Errors
    /// The process cannot be entered in the queue.
    pub async fn new(
        queue: Queue,
        indexer: Arc<dyn ImageIndexer>,
        settings: PoolSettings,
    ) -> Result<Self, QueueError> {
        let at = queue.clone();
        let id = soci_task::blocking(move || at.enter()).await?;
        Ok(Self {
            queue,
            id,
            indexer,
            settings,
            metrics: None,
            wake: Notify::new(),
        })
    }

    /// The same, counting what it does.
    #[must_use]
    pub fn counted_by(mut self, metrics: Arc<Metrics>) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// Wakes the workers, which look for new jobs.
    pub fn wake(&self) {
        self.wake.notify_waiters();
    }

    /// Works until `stop` is cancelled; jobs under way then have the settings' grace.
    ///
    /// # Errors
    /// The queue could not be used for a minute. A pool that does not end when the queue is empty waits
    /// for it for ever instead.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) -> Result<(), QueueError> {
        let mut workers = JoinSet::new();
        for _ in 0..self.settings.workers.get() {
            workers.spawn(Arc::clone(&self).work(stop.clone()));
        }
        let mut result = Ok(());
        while let Some(ended) = workers.join_next().await {
            // A worker does not panic: jobs have a task of their own.
            result = result.and(ended.unwrap_or(Ok(())));
        }
        result
    }

    async fn work(self: Arc<Self>, stop: CancellationToken) -> Result<(), QueueError> {
        let mut failures = 0;
        while !stop.is_cancelled() {
            let woken = self.wake.notified();
            let pause = match self.claim().await {
                Ok(Claim::Job(job)) => {
                    failures = 0;
                    self.carry_out(*job, &stop).await?;
                    self.wake.notify_waiters();
                    continue;
                }
                Ok(Claim::Nothing(wait)) => {
                    failures = 0;
                    if self.settings.until_empty && self.is_empty().await {
                        self.wake.notify_waiters();
                        return Ok(());
                    }
                    wait.unwrap_or(LOOK_AGAIN).min(LOOK_AGAIN)
                }
                Err(error) => {
                    tracing::error!(error = %soci_errors::chain(&error), "cannot take a job");
                    failures += 1;
                    if self.is_too_much(failures) {
                        return Err(error);
                    }
                    AFTER_TROUBLE
                }
            };
            tokio::select! {
                () = woken => {}
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => {}
            }
        }
        Ok(())
    }

    /// Whether to end after so many failures of the queue in a row.
    const fn is_too_much(&self, failures: u32) -> bool {
        self.settings.until_empty && failures >= MAX_TROUBLE
    }

    async fn is_empty(&self) -> bool {
        let queue = self.queue.clone();
        let counts = soci_task::blocking(move || queue.counts()).await;
        counts.is_ok_and(|counts| counts.waiting == 0 && counts.running == 0)
    }

    async fn claim(self: &Arc<Self>) -> Result<Claim, QueueError> {
        let this = Arc::clone(self);
        soci_task::blocking(move || this.queue.claim(&this.id, this.settings.max_attempts.get()))
            .await
    }

    async fn carry_out(
        self: &Arc<Self>,
        job: Job,
        stop: &CancellationToken,
    ) -> Result<(), QueueError> {
        let Job {
            id, push, attempts, ..
        } = &job;
        tracing::info!(job = id, image = %push, attempt = attempts, "indexing");
        let begin = Instant::now();
        let limit = begin + self.settings.job_timeout;
        let grace = async {
            stop.cancelled().await;
            tokio::time::sleep(self.settings.grace).await;
        };
        // On a task of its own, so that a panic ends the job and not the worker.
        let (indexer, target) = (Arc::clone(&self.indexer), push.clone());
        let mut task = JoinSet::new();
        task.spawn(async move { index_in_order(&*indexer, &target).await });
        let done = tokio::select! {
            done = timeout_at(limit, task.join_next()) => Some(done),
            () = grace => None,
        };
        // What is still at work is dropped.
        task.abort_all();
        let result = match done {
            None => {
                tracing::info!(job = id, image = %push, "interrupted; the job is free again");
                return self
                    .finish(*id, Finish::Release, begin.elapsed(), stop)
                    .await;
            }
            Some(Err(_)) => Err(Failure::Transient(format!(
                "not done within {} s; raise --job-timeout if the image is that large",
                self.settings.job_timeout.as_secs()
            ))),
            Some(Ok(Some(Ok(result)))) => result,
            Some(Ok(Some(Err(error)))) => Err(Failure::Transient(format!(
                "the work did not finish ({error}); this is a defect, please report it"
            ))),
            Some(Ok(None)) => Err(Failure::Transient("the work did not begin".to_owned())),
        };
        let time = begin.elapsed();
        let seconds = time.as_secs_f64();
        let finish = self.conclude(&job, result);
        match &finish {
            Finish::Done(outcome) => tracing::info!(
                job = id,
                image = %push,
                indexed = outcome.image.as_deref(),
                layers = outcome.layers,
                bytes = outcome.bytes,
                seconds,
                "indexed"
            ),
            Finish::Skipped(reason) => {
                tracing::info!(job = id, image = %push, reason, seconds, "not to be indexed");
            }
            Finish::Retry { reason, pause } => tracing::warn!(
                job = id,
                image = %push,
                error = reason,
                pause_seconds = pause.as_secs_f64(),
                "indexing failed; it is tried again"
            ),
            Finish::Dead(reason) => {
                tracing::error!(job = id, image = %push, error = reason, "indexing failed; given up");
            }
            Finish::Release => {}
        }
        self.finish(*id, finish, time, stop).await
    }

    fn conclude(&self, job: &Job, result: Result<crate::Outcome, Failure>) -> Finish {
        match result {
            Ok(outcome) => Finish::Done(outcome),
            Err(Failure::NotWanted(reason)) => Finish::Skipped(reason),
            Err(Failure::Permanent(reason)) => Finish::Dead(reason),
            Err(Failure::Transient(reason)) if job.attempts >= self.settings.max_attempts.get() => {
                Finish::Dead(format!(
                    "given up after {} attempts: {reason}",
                    job.attempts
                ))
            }
            Err(Failure::Transient(reason)) => Finish::Retry {
                reason,
                pause: self.pause(job.attempts),
            },
        }
    }

    /// The pause after an attempt: doubled each time, of which a random part is taken off, so that
    /// many jobs that failed together do not come back together.
    fn pause(&self, attempts: u32) -> Duration {
        let factor = 1_u32
            .checked_shl(attempts.saturating_sub(1))
            .unwrap_or(u32::MAX);
        let full = self.settings.min_pause.saturating_mul(factor);
        full.min(self.settings.max_pause)
            .mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// Records the end of a job. A queue that cannot be written (a full disk) is waited for, until the
    /// pool is stopped: the job would be done again otherwise.
    async fn finish(
        self: &Arc<Self>,
        id: u64,
        finish: Finish,
        time: Duration,
        stop: &CancellationToken,
    ) -> Result<(), QueueError> {
        if let Some(metrics) = &self.metrics {
            metrics.attempt(&finish, time);
        }
        let mut failures = 0;
        loop {
            let (this, finish) = (Arc::clone(self), finish.clone());
            let done = soci_task::blocking(move || this.queue.finish(&this.id, id, &finish)).await;
            let error = match done {
                Ok(()) => return Ok(()),
                Err(QueueError::NoSuchJob(_)) => {
                    tracing::warn!(job = id, "another process has taken the job over");
                    return Ok(());
                }
                Err(error) => error,
            };
            tracing::error!(job = id, error = %soci_errors::chain(&error), "cannot record the end of a job");
            failures += 1;
            // The job is free again when the process has ended.
            if stop.is_cancelled() || self.is_too_much(failures) {
                return Err(error);
            }
            tokio::select! {
                () = tokio::time::sleep(AFTER_TROUBLE) => {}
                () = stop.cancelled() => {}
            }
        }
    }
}
