//! The durable queue: pushes that wait, run, and have ended. A push that was taken survives a crash
//! between any two steps, and is carried out once.
//!
//! All functions block on the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use redb::{ReadableTable, ReadableTableMetadata as _, Table};
use serde::Serialize;
use soci_oci::Digest;

use crate::queue_file::{
    ENDED, EVENTS, META, OPEN, QueueError, QueueFolder, SEEN, TAGS, WorkError,
};
use crate::{Job, JobState, Outcome, Push};

const NEXT_KEY: &str = "next";
/// Most jobs that wait or run.
const MAX_OPEN: usize = 100_000;
/// Jobs that have ended are remembered up to this number.
const KEEP_ENDED: u64 = 10_000;

/// The queue in a folder. Clones and other processes share it.
#[derive(Debug, Clone)]
pub struct Queue {
    folder: Arc<QueueFolder>,
    /// What the last look for a job found, while there was none.
    idle: Arc<Mutex<Option<Idle>>>,
}

/// There is no job to give out until the database changes, this moment comes, or one of these
/// workers dies.
#[derive(Debug)]
struct Idle {
    changes: u64,
    due_ms: Option<u64>,
    workers: BTreeSet<String>,
}

/// A process that works on jobs. When it ends, however that is, its jobs are free again.
#[derive(Debug)]
pub struct WorkerId {
    name: String,
    folder: Arc<QueueFolder>,
    /// Locked as long as the process lives.
    _lock: File,
}

impl WorkerId {
    /// Returns the name in the state of its jobs.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for WorkerId {
    fn drop(&mut self) {
        self.folder.leave(&self.name);
    }
}

/// What became of a push that was given to the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Added {
    /// It has this number.
    New(u64),
    /// The job of this number is for the same push.
    Duplicate(u64),
}

/// A job for a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// To be carried out.
    Job(Box<Job>),
    /// There is none, and none is due before this time has passed; `None`: until another one ends
    /// or is added.
    Nothing(Option<Duration>),
}

/// How work on a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finish {
    /// The image is indexed.
    Done(Outcome),
    /// It is not to be indexed, for this reason.
    Skipped(String),
    /// It failed and is tried again.
    Retry {
        /// Why it failed.
        reason: String,
        /// The pause before the next attempt.
        pause: Duration,
    },
    /// It is given up, for this reason.
    Dead(String),
    /// It was interrupted: as if it had not begun.
    Release,
}

/// Numbers of jobs by state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// They wait for a worker.
    pub waiting: u64,
    /// A worker has them.
    pub running: u64,
    /// The image is indexed.
    pub done: u64,
    /// The image is not to be indexed.
    pub skipped: u64,
    /// Given up.
    pub dead: u64,
}

impl Counts {
    /// Returns the numbers with the names of the states.
    #[must_use]
    pub const fn by_state(&self) -> [(&'static str, u64); 5] {
        [
            ("waiting", self.waiting),
            ("running", self.running),
            ("done", self.done),
            ("skipped", self.skipped),
            ("dead", self.dead),
        ]
    }
}

impl Queue {
    /// Opens the queue in a folder, which is made if there is none.
    ///
    /// # Errors
    /// The folder or the database cannot be made or read.
    pub fn open(folder: &Path) -> Result<Self, QueueError> {
        Ok(Self {
            folder: Arc::new(QueueFolder::open(folder)?),
            idle: Arc::default(),
        })
    }

    /// Enters this process among those that work on jobs.
    ///
    /// # Errors
    /// Its file cannot be made.
    pub fn enter(&self) -> Result<WorkerId, QueueError> {
        let (name, lock) = self.folder.enter()?;
        Ok(WorkerId {
            name,
            folder: Arc::clone(&self.folder),
            _lock: lock,
        })
    }

    /// Adds pushes. They are durable when this returns. A push is a duplicate if its event is known, or
    /// if the newest open job of its tag has the same digest.
    ///
    /// # Errors
    /// The queue cannot be written, or is full; then none was added.
    pub fn add(&self, pushes: &[Push]) -> Result<Vec<Added>, QueueError> {
        self.folder.write(|transaction| {
            let mut open = transaction.open_table(OPEN)?;
            let mut events = transaction.open_table(EVENTS)?;
            let mut meta = transaction.open_table(META)?;
            let mut newest: BTreeMap<String, (u64, Option<Digest>)> = BTreeMap::new();
            for job in jobs(&open)? {
                newest.insert(job.push.tagged_name(), (job.id, job.push.digest));
            }
            let mut left =
                MAX_OPEN.saturating_sub(usize::try_from(open.len()?).unwrap_or(MAX_OPEN));
            let mut added = Vec::new();
            for push in pushes {
                let event = push.event.as_deref().map(event_key);
                let known = match &event {
                    Some(event) => events.get(event.as_str())?.map(|id| id.value()),
                    None => None,
                };
                let tag = push.tagged_name();
                let same = || {
                    let (id, digest) = newest.get(&tag)?;
                    (*digest == push.digest).then_some(*id)
                };
                if let Some(id) = known.or_else(same) {
                    added.push(Added::Duplicate(id));
                    continue;
                }
                let Some(less) = left.checked_sub(1) else {
                    return Err(WorkError::Refused(Box::new(QueueError::Full(MAX_OPEN))));
                };
                left = less;
                let id = meta.get(NEXT_KEY)?.map_or(1, |next| next.value());
                meta.insert(NEXT_KEY, id.saturating_add(1))?;
                let now = now_ms();
                let job = Job {
                    id,
                    push: push.clone(),
                    state: JobState::Waiting { due_ms: now },
                    attempts: 0,
                    received_ms: now,
                    started_ms: None,
                    finished_ms: None,
                    reason: None,
                    outcome: None,
                };
                put(&mut open, &job)?;
                if let Some(event) = &event {
                    events.insert(event.as_str(), id)?;
                }
                newest.insert(tag, (id, push.digest));
                added.push(Added::New(id));
            }
            Ok(added)
        })
    }

    /// Takes the oldest job that is due. Jobs of one tag are given out one after the other; one that a
    /// later push of its tag has overtaken is skipped. A job whose worker has died is free again, and
    /// is given up after `max_attempts`: it may be what killed them.
    ///
    /// # Errors
    /// The queue cannot be read or written.
    pub fn claim(&self, worker: &WorkerId, max_attempts: u32) -> Result<Claim, QueueError> {
        let mut alive: BTreeMap<String, bool> = BTreeMap::new();
        let mut due: Option<u64> = None;
        let mut looked = false;
        let (claim, changes) = self.folder.write_unless(
            |changes| self.still_nothing(worker, changes),
            |transaction| {
                looked = true;
                let mut open = transaction.open_table(OPEN)?;
                let mut ended = transaction.open_table(ENDED)?;
                let mut events = transaction.open_table(EVENTS)?;
                let tags = transaction.open_table(TAGS)?;
                let now = now_ms();
                let mut changed = false;
                let mut busy: BTreeSet<String> = BTreeSet::new();
                let mut waiting: Vec<Job> = Vec::new();
                for mut job in jobs(&open)? {
                    if let JobState::Running { worker: other } = &job.state {
                        let lives = *alive
                            .entry(other.clone())
                            .or_insert_with(|| other == worker.name() || self.folder.lives(other));
                        if lives {
                            busy.insert(job.push.tagged_name());
                            continue;
                        }
                        job.state = JobState::Waiting { due_ms: now };
                        job.reason = Some("the process that worked on it ended".to_owned());
                        put(&mut open, &job)?;
                        changed = true;
                    }
                    waiting.push(job);
                }
                for mut job in waiting {
                    let tag = job.push.tagged_name();
                    let JobState::Waiting { due_ms } = job.state else {
                        continue;
                    };
                    if busy.contains(&tag) {
                        continue;
                    }
                    if due_ms > now {
                        due = Some(due.map_or(due_ms, |other| other.min(due_ms)));
                        continue;
                    }
                    let overtaken = tags
                        .get(tag.as_str())?
                        .filter(|newer| newer.value() > job.id);
                    if let Some(newer) = overtaken {
                        let newer = newer.value();
                        job.reason =
                            Some(format!("job {newer} has indexed a later push of the tag"));
                        let state = JobState::Skipped;
                        end(&mut open, &mut ended, &mut events, &mut job, state)?;
                        changed = true;
                        continue;
                    }
                    if job.attempts >= max_attempts {
                        let why = job.reason.take().unwrap_or_default();
                        job.reason =
                            Some(format!("given up after {} attempts: {why}", job.attempts));
                        end(&mut open, &mut ended, &mut events, &mut job, JobState::Dead)?;
                        changed = true;
                        continue;
                    }
                    job.attempts = job.attempts.saturating_add(1);
                    job.started_ms = Some(now);
                    job.state = JobState::Running {
                        worker: worker.name().to_owned(),
                    };
                    put(&mut open, &job)?;
                    return Ok((Claim::Job(Box::new(job)), true));
                }
                let wait = due.map(|due| Duration::from_millis(due.saturating_sub(now)));
                Ok((Claim::Nothing(wait), changed))
            },
        )?;
        if looked && matches!(claim, Claim::Nothing(_)) {
            let living = alive.into_iter().filter(|(_, lives)| *lives);
            *self.idle.lock() = Some(Idle {
                changes,
                due_ms: due,
                workers: living.map(|(name, _)| name).collect(),
            });
        }
        Ok(claim)
    }

    /// Whether the last look at the database still holds. To be asked under the lock.
    fn still_nothing(&self, worker: &WorkerId, changes: u64) -> Option<Claim> {
        let idle = self.idle.lock();
        let idle = idle.as_ref().filter(|idle| idle.changes == changes)?;
        let now = now_ms();
        if idle.due_ms.is_some_and(|due| due <= now) {
            return None;
        }
        let dead = |name: &String| name != worker.name() && !self.folder.lives(name);
        if idle.workers.iter().any(dead) {
            return None;
        }
        let wait = idle
            .due_ms
            .map(|due| Duration::from_millis(due.saturating_sub(now)));
        Some(Claim::Nothing(wait))
    }

    /// Ends work on a job that [`Queue::claim`] gave to this worker.
    ///
    /// # Errors
    /// The queue cannot be written; then the job is still this worker's.
    pub fn finish(&self, worker: &WorkerId, id: u64, finish: &Finish) -> Result<(), QueueError> {
        self.folder.write(|transaction| {
            let mut open = transaction.open_table(OPEN)?;
            let mut ended = transaction.open_table(ENDED)?;
            let mut events = transaction.open_table(EVENTS)?;
            let mut tags = transaction.open_table(TAGS)?;
            let mut job = match open.get(id)? {
                Some(bytes) => decode(bytes.value())?,
                None => return Err(WorkError::Refused(Box::new(QueueError::NoSuchJob(id)))),
            };
            match &job.state {
                JobState::Running { worker: own } if own == worker.name() => {}
                // Another process has it since.
                _ => return Err(WorkError::Refused(Box::new(QueueError::NoSuchJob(id)))),
            }
            let now = now_ms();
            job.finished_ms = Some(now);
            let state = match finish.clone() {
                Finish::Done(outcome) => {
                    tags.insert(job.push.tagged_name().as_str(), id)?;
                    job.reason = None;
                    job.outcome = Some(outcome);
                    JobState::Done
                }
                Finish::Skipped(reason) => {
                    job.reason = Some(reason);
                    JobState::Skipped
                }
                Finish::Dead(reason) => {
                    job.reason = Some(reason);
                    JobState::Dead
                }
                Finish::Retry { reason, pause } => {
                    job.reason = Some(reason);
                    JobState::Waiting {
                        due_ms: now.saturating_add(millis(pause)),
                    }
                }
                Finish::Release => {
                    job.attempts = job.attempts.saturating_sub(1);
                    JobState::Waiting { due_ms: now }
                }
            };
            if state.is_open() {
                job.state = state;
                put(&mut open, &job)
            } else {
                end(&mut open, &mut ended, &mut events, &mut job, state)
            }
        })
    }

    /// Queues jobs that were given up again: those of `ids`, or all of them. Returns the numbers of
    /// the jobs.
    ///
    /// # Errors
    /// A job was not given up, or the queue cannot be written.
    pub fn retry(&self, ids: Option<&[u64]>) -> Result<Vec<u64>, QueueError> {
        self.folder.write(|transaction| {
            let mut open = transaction.open_table(OPEN)?;
            let mut ended = transaction.open_table(ENDED)?;
            let dead: Vec<Job> = jobs(&ended)?
                .into_iter()
                .filter(|job| job.state == JobState::Dead)
                .collect();
            let missing = |id: &&u64| !dead.iter().any(|job| job.id == **id);
            if let Some(id) = ids.and_then(|ids| ids.iter().find(missing)) {
                return Err(WorkError::Refused(Box::new(QueueError::NoSuchJob(*id))));
            }
            let chosen = |job: &Job| ids.is_none_or(|ids| ids.contains(&job.id));
            let mut again = Vec::new();
            for mut job in dead.into_iter().filter(chosen) {
                ended.remove(job.id)?;
                job.state = JobState::Waiting { due_ms: now_ms() };
                job.attempts = 0;
                job.finished_ms = None;
                put(&mut open, &job)?;
                again.push(job.id);
            }
            Ok(again)
        })
    }

    /// Lists jobs, the newest first: at most `limit` of the state of this name, or of all states.
    ///
    /// # Errors
    /// The queue cannot be read.
    pub fn list(&self, state: Option<&str>, limit: usize) -> Result<Vec<Job>, QueueError> {
        self.folder.read(|transaction| {
            let mut all = jobs(&transaction.open_table(OPEN)?)?;
            all.extend(jobs(&transaction.open_table(ENDED)?)?);
            all.retain(|job| state.is_none_or(|state| job.state.name() == state));
            all.sort_by_key(|job| std::cmp::Reverse(job.id));
            all.truncate(limit);
            Ok(all)
        })
    }

    /// Counts the jobs.
    ///
    /// # Errors
    /// The queue cannot be read.
    pub fn counts(&self) -> Result<Counts, QueueError> {
        let mut counts = Counts::default();
        for job in self.list(None, usize::MAX)? {
            let count = match job.state {
                JobState::Waiting { .. } => &mut counts.waiting,
                JobState::Running { .. } => &mut counts.running,
                JobState::Done => &mut counts.done,
                JobState::Skipped => &mut counts.skipped,
                JobState::Dead => &mut counts.dead,
            };
            *count += 1;
        }
        Ok(counts)
    }

    /// Adds what polling found: of `found`, the pushes whose digest is not the one that was seen last
    /// under their tag.
    ///
    /// # Errors
    /// As for [`Queue::add`].
    pub fn add_seen(&self, found: &[Push]) -> Result<Vec<Added>, QueueError> {
        let new: Vec<Push> = self.folder.read(|transaction| {
            let seen = transaction.open_table(SEEN)?;
            let mut new = Vec::new();
            for push in found {
                let digest = push.digest.map(|digest| digest.to_string());
                let last = seen.get(push.tagged_name().as_str())?;
                let last = last.as_ref().map(redb::AccessGuard::value);
                if last != digest.as_deref() {
                    new.push(push.clone());
                }
            }
            Ok(new)
        })?;
        if new.is_empty() {
            return Ok(Vec::new());
        }
        let added = self.add(&new)?;
        // After a crash between the two they are duplicates, or found to be indexed.
        self.folder.write(|transaction| {
            let mut seen = transaction.open_table(SEEN)?;
            for push in &new {
                if let Some(digest) = push.digest {
                    seen.insert(push.tagged_name().as_str(), digest.to_string().as_str())?;
                }
            }
            Ok(())
        })?;
        Ok(added)
    }
}

fn jobs(table: &impl ReadableTable<u64, &'static [u8]>) -> Result<Vec<Job>, WorkError> {
    let mut all = Vec::new();
    for entry in table.iter()? {
        let (_, bytes) = entry?;
        all.push(decode(bytes.value())?);
    }
    Ok(all)
}

fn decode(bytes: &[u8]) -> Result<Job, WorkError> {
    serde_json::from_slice(bytes)
        .map_err(|error| WorkError::Content(format!("a job is damaged ({error})")))
}

fn put(table: &mut Table<'_, u64, &'static [u8]>, job: &Job) -> Result<(), WorkError> {
    let bytes = serde_json::to_vec(job)
        .map_err(|error| WorkError::Content(format!("a job cannot be written ({error})")))?;
    table.insert(job.id, bytes.as_slice())?;
    Ok(())
}

/// Moves a job to those that have ended, and forgets the oldest of them.
fn end(
    open: &mut Table<'_, u64, &'static [u8]>,
    ended: &mut Table<'_, u64, &'static [u8]>,
    events: &mut Table<'_, &'static str, u64>,
    job: &mut Job,
    state: JobState,
) -> Result<(), WorkError> {
    job.state = state;
    job.finished_ms = Some(now_ms());
    open.remove(job.id)?;
    put(ended, job)?;
    while ended.len()? > KEEP_ENDED {
        let Some((_, bytes)) = ended.pop_first()? else {
            break;
        };
        let oldest = decode(bytes.value())?;
        if let Some(event) = oldest.push.event.as_deref() {
            events.remove(event_key(event).as_str())?;
        }
    }
    Ok(())
}

/// The key of an event: of one length, whatever the registry calls it.
fn event_key(event: &str) -> String {
    Digest::of(event.as_bytes()).hex()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds since 1970.
fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, millis)
}
