//! The queue: what is taken is carried out once, in the order of each tag, whatever dies in between.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use soci_index_builder::{
    Added, Claim, Failure, Finish, ImageIndexer, Job, JobState, Outcome, PoolSettings, Push, Queue,
    WorkerId, WorkerPool,
};
use soci_oci::Digest;
use tokio_util::sync::CancellationToken;

fn push(tag: &str, content: &str) -> Push {
    let digest = Digest::of(content.as_bytes());
    Push::new("registry.example", "app", Some(tag), Some(digest)).unwrap()
}

fn claimed(queue: &Queue, worker: &WorkerId) -> Option<Job> {
    match queue.claim(worker, 3).unwrap() {
        Claim::Job(job) => Some(*job),
        Claim::Nothing(_) => None,
    }
}

fn job(queue: &Queue, id: u64) -> Job {
    let all = queue.list(None, usize::MAX).unwrap();
    all.into_iter().find(|job| job.id == id).unwrap()
}

#[test]
fn an_event_that_comes_twice_is_one_job() {
    let dir = tempfile::tempdir().unwrap();
    let queue = Queue::open(dir.path()).unwrap();
    let mut named = push("1", "a");
    named.event = Some("event-1".to_owned());
    assert_eq!(
        queue.add(std::slice::from_ref(&named)).unwrap(),
        [Added::New(1)]
    );
    // Another event about the same image, while it waits.
    assert_eq!(queue.add(&[push("1", "a")]).unwrap(), [Added::Duplicate(1)]);
    let worker = queue.enter().unwrap();
    let first = claimed(&queue, &worker).unwrap();
    queue
        .finish(&worker, first.id, &Finish::Done(Outcome::default()))
        .unwrap();
    // The event again, after the job has ended and the queue was opened again.
    drop((worker, queue));
    let queue = Queue::open(dir.path()).unwrap();
    assert_eq!(queue.add(&[named]).unwrap(), [Added::Duplicate(1)]);
    // The image pushed again is looked at again.
    assert_eq!(queue.add(&[push("1", "a")]).unwrap(), [Added::New(2)]);
}

#[test]
fn pushes_of_one_tag_run_one_after_the_other_and_an_overtaken_one_is_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let queue = Queue::open(dir.path()).unwrap();
    let worker = queue.enter().unwrap();
    let pushes = [push("1", "old"), push("1", "new"), push("2", "old")];
    queue.add(&pushes).unwrap();
    assert_eq!(claimed(&queue, &worker).unwrap().id, 1);
    assert_eq!(claimed(&queue, &worker).unwrap().id, 3, "another tag");
    assert_eq!(claimed(&queue, &worker), None, "the tag is being indexed");
    let again = Finish::Retry {
        reason: "the registry is down".to_owned(),
        pause: Duration::from_secs(3600),
    };
    queue.finish(&worker, 1, &again).unwrap();
    assert_eq!(claimed(&queue, &worker).unwrap().id, 2);
    queue
        .finish(&worker, 2, &Finish::Done(Outcome::default()))
        .unwrap();
    // The first attempt's time has come.
    let early = Finish::Retry {
        reason: String::new(),
        pause: Duration::ZERO,
    };
    queue.finish(&worker, 3, &early).unwrap();
    assert!(matches!(job(&queue, 1).state, JobState::Waiting { .. }));
    queue.add(&[push("1", "newest")]).unwrap();
    let order: Vec<u64> = std::iter::from_fn(|| claimed(&queue, &worker))
        .map(|job| job.id)
        .collect();
    assert_eq!(order, [3, 4]);
}

#[test]
fn a_job_of_a_process_that_died_is_free_and_is_given_up_if_it_kills_them_all() {
    let dir = tempfile::tempdir().unwrap();
    let queue = Queue::open(dir.path()).unwrap();
    queue.add(&[push("1", "a")]).unwrap();
    let other = queue.enter().unwrap();
    for attempt in 1..=3 {
        let worker = queue.enter().unwrap();
        let job = claimed(&queue, &worker).unwrap();
        assert_eq!((job.id, job.attempts), (1, attempt));
        assert_eq!(claimed(&queue, &other), None, "it is being worked on");
        // What the system does when a process is killed: the lock of its file is released.
        drop(worker);
    }
    assert_eq!(claimed(&queue, &other), None);
    let dead = job(&queue, 1);
    assert_eq!(dead.state, JobState::Dead);
    assert!(
        dead.reason
            .unwrap()
            .contains("the process that worked on it ended")
    );
    assert_eq!(queue.retry(None).unwrap(), [1]);
    assert_eq!(claimed(&queue, &other).unwrap().attempts, 1);
}

#[test]
fn a_job_that_another_process_has_taken_over_cannot_be_ended() {
    let dir = tempfile::tempdir().unwrap();
    let queue = Queue::open(dir.path()).unwrap();
    queue.add(&[push("1", "a")]).unwrap();
    let (first, second) = (queue.enter().unwrap(), queue.enter().unwrap());
    claimed(&queue, &first).unwrap();
    let done = Finish::Done(Outcome::default());
    assert!(queue.finish(&second, 1, &done).is_err());
    queue.finish(&first, 1, &Finish::Release).unwrap();
    let taken = claimed(&queue, &second).unwrap();
    assert_eq!(taken.attempts, 1, "an interrupted attempt does not count");
    assert!(queue.finish(&first, 1, &done).is_err());
    assert_eq!(queue.counts().unwrap().running, 1);
}

/// While the database is out of reach, opening it fails.
#[test]
fn a_worker_without_a_job_leaves_the_database_alone_until_something_changes() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, other) = (
        Queue::open(dir.path()).unwrap(),
        Queue::open(dir.path()).unwrap(),
    );
    let (worker, peer) = (queue.enter().unwrap(), other.enter().unwrap());
    queue.add(&[push("1", "a"), push("2", "b")]).unwrap();
    assert_eq!(claimed(&other, &peer).unwrap().id, 1);
    assert_eq!(claimed(&queue, &worker).unwrap().id, 2);
    assert_eq!(claimed(&queue, &worker), None);
    let (database, away) = (dir.path().join("queue.redb"), dir.path().join("away"));
    std::fs::rename(&database, &away).unwrap();
    std::fs::create_dir(&database).unwrap();
    assert_eq!(claimed(&queue, &worker), None);
    // A process died: its job may be free.
    drop(peer);
    queue.claim(&worker, 3).unwrap_err();
    std::fs::remove_dir(&database).unwrap();
    std::fs::rename(&away, &database).unwrap();
    assert_eq!(claimed(&queue, &worker).unwrap().id, 1);
    assert_eq!(claimed(&queue, &worker), None);
    // Another process adds a job.
    other.add(&[push("3", "c")]).unwrap();
    assert_eq!(claimed(&queue, &worker).unwrap().id, 3);
    // The pause of a failed one is over.
    assert_eq!(claimed(&queue, &worker), None);
    let again = Finish::Retry {
        reason: String::new(),
        pause: Duration::from_millis(1),
    };
    queue.finish(&worker, 3, &again).unwrap();
    while claimed(&queue, &worker).is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn polling_adds_an_image_once_and_again_when_its_tag_moves() {
    let dir = tempfile::tempdir().unwrap();
    let queue = Queue::open(dir.path()).unwrap();
    let worker = queue.enter().unwrap();
    let found = [push("1", "a"), push("2", "b")];
    assert_eq!(
        queue.add_seen(&found).unwrap(),
        [Added::New(1), Added::New(2)]
    );
    while let Some(job) = claimed(&queue, &worker) {
        queue
            .finish(&worker, job.id, &Finish::Done(Outcome::default()))
            .unwrap();
    }
    assert_eq!(queue.add_seen(&found).unwrap(), []);
    let moved = [push("1", "c"), push("2", "b")];
    assert_eq!(queue.add_seen(&moved).unwrap(), [Added::New(3)]);
}

/// Fails the first attempts of some images; counts.
#[derive(Default)]
struct Scripted {
    seen: Mutex<Vec<String>>,
    failures: AtomicUsize,
}

#[async_trait]
impl ImageIndexer for Scripted {
    async fn index(&self, push: &Push) -> Result<Outcome, Failure> {
        let tag = push.tag.clone().unwrap_or_default();
        match tag.as_str() {
            "flaky" if self.failures.fetch_add(1, Ordering::SeqCst) < 2 => {
                Err(Failure::Transient("the registry is down".to_owned()))
            }
            "down" => Err(Failure::Transient("the registry is down".to_owned())),
            "damaged" => Err(Failure::Permanent("the layer is damaged".to_owned())),
            "endless" => std::future::pending().await,
            "defect" => panic!("a defect"),
            "small" => Err(Failure::NotWanted("it is small".to_owned())),
            _ => {
                self.seen.lock().push(tag);
                Ok(Outcome::default())
            }
        }
    }
}

fn quick() -> PoolSettings {
    PoolSettings {
        max_attempts: NonZeroU32::new(3).unwrap(),
        min_pause: Duration::from_millis(1),
        max_pause: Duration::from_millis(2),
        job_timeout: Duration::from_secs(3600),
        grace: Duration::ZERO,
        until_empty: true,
        ..PoolSettings::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_tried_again_with_pauses_and_given_up_with_their_reason() {
    let dir = tempfile::tempdir().unwrap();
    let queue = Queue::open(dir.path()).unwrap();
    let tags = [
        "flaky", "down", "damaged", "endless", "defect", "small", "fine",
    ];
    let pushes: Vec<Push> = tags.iter().map(|tag| push(tag, tag)).collect();
    queue.add(&pushes).unwrap();
    let settings = PoolSettings {
        // Of each of the three attempts at the one that never ends; the others take none of it.
        job_timeout: Duration::from_secs(3),
        ..quick()
    };
    let pool = WorkerPool::new(queue.clone(), Arc::new(Scripted::default()), settings)
        .await
        .unwrap();
    Arc::new(pool).run(CancellationToken::new()).await.unwrap();
    let ended = |tag: &str| {
        let all = queue.list(None, usize::MAX).unwrap();
        let job = all
            .into_iter()
            .find(|job| job.push.tag.as_deref() == Some(tag))
            .unwrap();
        (
            job.state.name(),
            job.attempts,
            job.reason.unwrap_or_default(),
        )
    };
    assert_eq!(ended("flaky"), ("done", 3, String::new()));
    let (state, attempts, reason) = ended("down");
    assert_eq!((state, attempts), ("dead", 3));
    assert!(
        reason.contains("3 attempts: the registry is down"),
        "{reason}"
    );
    assert_eq!(
        ended("damaged"),
        ("dead", 1, "the layer is damaged".to_owned())
    );
    assert!(
        ended("endless").2.contains("not done within"),
        "{:?}",
        ended("endless")
    );
    assert!(
        ended("defect").2.contains("defect"),
        "{:?}",
        ended("defect")
    );
    assert_eq!(ended("small").0, "skipped");
    assert_eq!(ended("fine").0, "done");
}

#[tokio::test(flavor = "multi_thread")]
async fn three_pools_on_one_folder_carry_each_job_out_once() {
    let dir = tempfile::tempdir().unwrap();
    let pushes: Vec<Push> = (0..60).map(|n| push(&format!("t{n}"), "x")).collect();
    Queue::open(dir.path()).unwrap().add(&pushes).unwrap();
    let scripted: Vec<Arc<Scripted>> = (0..3).map(|_| Arc::default()).collect();
    let mut pools = tokio::task::JoinSet::new();
    for one in &scripted {
        // Each opens the folder for itself, as a process would.
        let queue = Queue::open(dir.path()).unwrap();
        let pool = WorkerPool::new(queue, Arc::clone(one) as Arc<_>, quick())
            .await
            .unwrap();
        pools.spawn(Arc::new(pool).run(CancellationToken::new()));
    }
    for ended in pools.join_all().await {
        ended.unwrap();
    }
    let mut all: Vec<String> = scripted
        .iter()
        .flat_map(|one| one.seen.lock().clone())
        .collect();
    all.sort();
    let distinct: BTreeSet<String> = all.iter().cloned().collect();
    assert_eq!((all.len(), distinct.len()), (60, 60));
}

#[tokio::test]
async fn a_stopped_pool_leaves_its_jobs_to_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let queue = Queue::open(dir.path()).unwrap();
    queue.add(&[push("endless", "x")]).unwrap();
    let settings = PoolSettings {
        until_empty: false,
        ..quick()
    };
    let pool = WorkerPool::new(queue.clone(), Arc::new(Scripted::default()), settings)
        .await
        .unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(Arc::new(pool).run(stop.clone()));
    while queue.counts().unwrap().running == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.cancel();
    running.await.unwrap().unwrap();
    let job = job(&queue, 1);
    assert!(matches!(job.state, JobState::Waiting { .. }));
    assert_eq!(job.attempts, 0);
}
