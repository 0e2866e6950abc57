//! A disk that is really full. Needs root: mounts a small tmpfs.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use soci_index_builder::{
    Added, Failure, ImageIndexer, Outcome, PoolSettings, Push, Queue, QueueError, WorkerPool,
};
use soci_oci::Digest;
use soci_testkit::CapturedLog;
use tokio_util::sync::CancellationToken;
use tracing::Level;

struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn mount() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", folder.path(), "tmpfs", flags, c"size=8m")
            .expect("mounting a tmpfs: this test needs root");
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes every free block.
    fn fill(&self) {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path().join("filler"))
            .unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
    }

    fn free(&self) {
        std::fs::remove_file(self.path().join("filler")).unwrap();
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let flags = rustix::mount::UnmountFlags::DETACH;
        let _ = rustix::mount::unmount(self.path(), flags);
    }
}

fn pushes(prefix: &str, count: usize) -> Vec<Push> {
    let digest = Some(Digest::of(b"x"));
    let push = |n: usize| {
        Push::new(
            "registry.example",
            "app",
            Some(&format!("{prefix}{n}")),
            digest,
        )
    };
    (0..count).map(|n| push(n).unwrap()).collect()
}

fn is_full(error: &QueueError) -> bool {
    let reason = soci_errors::chain(error);
    reason.starts_with("cannot ") && reason.contains("No space left on device")
}

#[test]
fn a_full_disk_refuses_events_and_keeps_those_that_it_took() {
    let disk = Tmpfs::mount();
    let folder = disk.path().join("queue");
    let queue = Queue::open(&folder).unwrap();
    queue.add(&pushes("before", 3)).unwrap();
    disk.fill();
    // Small ones find place in the database's free pages for a while.
    let mut taken = 3;
    let error = loop {
        match queue.add(&pushes(&format!("full{taken}-"), 50)) {
            Ok(added) => taken += added.len(),
            Err(error) => break error,
        }
    };
    assert!(is_full(&error), "{error}");
    // Looked at, and opened again as after a crash.
    assert_eq!(queue.list(None, usize::MAX).unwrap().len(), taken);
    drop(queue);
    disk.free();
    let queue = Queue::open(&folder).unwrap();
    let jobs = queue.list(None, usize::MAX).unwrap();
    assert_eq!(jobs.len(), taken, "none is lost and none half-written");
    let next = queue.add(&pushes("after", 1)).unwrap();
    assert!(matches!(next[..], [Added::New(_)]), "{next:?}");
}

/// Fills the disk while it works, and has a result that finds no place in free pages.
struct Filling {
    disk: Tmpfs,
    seen: Mutex<Vec<String>>,
}

#[async_trait]
impl ImageIndexer for Filling {
    async fn index(&self, push: &Push) -> Result<Outcome, Failure> {
        self.seen.lock().push(push.tagged_name());
        self.disk.fill();
        Ok(Outcome {
            indexes: vec![Digest::of(b"x"); 10_000],
            ..Outcome::default()
        })
    }
}

#[tokio::test]
async fn an_image_that_was_indexed_while_the_disk_filled_up_is_not_indexed_again() {
    let log = CapturedLog::text(Level::WARN);
    let disk = Tmpfs::mount();
    let queue = Queue::open(&disk.path().join("queue")).unwrap();
    queue.add(&pushes("", 2)).unwrap();
    let filling = Arc::new(Filling {
        disk,
        seen: Mutex::default(),
    });
    let settings = PoolSettings {
        workers: NonZeroUsize::MIN,
        grace: Duration::ZERO,
        ..PoolSettings::default()
    };
    let pool = WorkerPool::new(queue.clone(), Arc::clone(&filling) as Arc<_>, settings)
        .await
        .unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(Arc::new(pool).run(stop.clone()));
    let until = async |what: &dyn Fn() -> bool| {
        while !what() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let failures = || log.about("cannot record the end of a job");
    for image in 1..=2 {
        until(&|| failures().len() >= image).await;
        assert_eq!(filling.seen.lock().len(), image, "one worker waits");
        assert_eq!(queue.counts().unwrap().running, 1);
        filling.disk.free();
        let ended = image as u64;
        until(&|| queue.counts().unwrap().done == ended).await;
    }
    let failures = failures();
    assert!(failures[0].contains("No space left"), "{failures:?}");
    assert_eq!(filling.seen.lock().len(), 2, "each once");
    stop.cancel();
    running.await.unwrap().unwrap();
}
