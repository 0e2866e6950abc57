//! A stack whose image is read by containers in every way while something happens to the daemon.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use soci_testkit::image::{READER_MODES, READER_SCRIPT, readers_image};
use soci_testkit::kernel_caches;
use soci_testkit::process::lazy_connections_below;
use soci_testkit::{
    Fault, Rule, Run, Running, SociDaemon, SociDaemonOptions, Stack, TestRoot, Throttle,
};

use super::{NAMESPACE, indexed, lazy_mounts, pull, stack_with};

/// The modes of each container: they share one Python, and are started together.
const CONTAINERS: [&[&str]; 3] = [
    &["sequential", "mmap"],
    &["random", "small"],
    &["exec", "find", "held"],
];

const PATIENCE: Duration = Duration::from_secs(180);

/// A registry as slow as one in the cloud, with faults; a daemon; a containerd; the readers' image, pulled.
pub(crate) struct Scene {
    pub(crate) stack: Stack,
    pub(crate) reference: String,
    pub(crate) layers: usize,
    before: Leaks,
    random: AtomicU64,
    root: TestRoot,
}

/// What the daemon's processes have open.
#[derive(Debug, Clone, Copy)]
struct Leaks {
    mounts: usize,
    server_files: usize,
    server_threads: usize,
    holder_files: usize,
}

impl Scene {
    /// With these lines of configuration.
    pub(crate) fn new(config: &str) -> Self {
        Self::with_daemon(SociDaemonOptions::with_config(config))
    }

    pub(crate) fn with_daemon(daemon: SociDaemonOptions) -> Self {
        let root = TestRoot::new().unwrap();
        let image = readers_image(root.path(), "readers").unwrap();
        let stack = stack_with(daemon);
        let reference = indexed(&stack, root.path(), "readers");
        stack.proxy.throttle(Throttle::cloud());
        pull(&stack, &reference);
        // Now and then a request fails, or a body breaks off.
        let blobs = |fault| Rule::always(fault).path("/blobs/").unwrap().ranged(true);
        stack
            .proxy
            .inject(blobs(Fault::status(503)).from_nth(7).times(5));
        stack
            .proxy
            .inject(blobs(Fault::Truncate(100_000)).from_nth(20).times(5));
        let layers = image.layers.len();
        assert_eq!(lazy_mounts(&stack), layers, "every layer is lazy");
        let before = Leaks::of(&stack);
        Self {
            stack,
            reference,
            layers,
            before,
            random: AtomicU64::new(0x9e37_79b9_7f4a_7c15),
            root,
        }
    }

    pub(crate) fn daemon(&self) -> &SociDaemon {
        &self.stack.daemon
    }

    /// Starts the containers, which are to read for this long, and waits until they run: a call in flight when the
    /// server dies is answered "unavailable" to containerd, which does not repeat it.
    pub(crate) fn start_readers(&self, time: Duration) -> Readers {
        let ctr = self.stack.containerd.ctr(NAMESPACE);
        let told = self.root.path().join("told");
        // Of readers before these.
        let _ = std::fs::remove_dir_all(&told);
        std::fs::create_dir(&told).unwrap();
        let mount = format!(
            "type=bind,src={},dst=/told,options=rbind:rw",
            told.display()
        );
        let start = |modes: &'static [&'static str]| {
            let command = ["/usr/bin/python3", READER_SCRIPT, "/told/end"];
            let command = command.iter().chain(modes).copied();
            let run = Run::new(&self.reference, "soci").command(command);
            let run = run.option("--mount").option(&mount);
            (modes, ctr.start(&run).unwrap())
        };
        let containers: Vec<_> = CONTAINERS.iter().copied().map(start).collect();
        super::wait_until("the readers run", PATIENCE, || {
            let tasks = ctr.output(["tasks", "ls"]).unwrap();
            match tasks.matches("RUNNING").count() == containers.len() {
                true => Ok(()),
                false => Err(tasks),
            }
        });
        Readers {
            until: Instant::now() + time,
            asked: Cell::new(false),
            told,
            containers,
        }
    }

    /// Between 50 and 650 ms: what is done next comes at another moment of the readers each time.
    pub(crate) fn pause_at_random(&self) {
        // An xorshift: which moments does not matter, as long as they differ.
        let mut x = self.random.load(Ordering::Relaxed);
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random.store(x, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(50 + x % 600));
    }

    /// Waits for the next server: sometimes only until its process exists, so that it is killed while it starts.
    pub(crate) fn wait_for_successor(&self, before: u32) {
        self.daemon().wait_for_successor(before).unwrap();
        if !self.random.load(Ordering::Relaxed).is_multiple_of(4) {
            self.wait_until_served();
        }
    }

    /// Drops the kernel's caches of names, attributes and content, so that it requests them again.
    #[expect(clippy::unused_self, reason = "it is done to the scene's machine")]
    pub(crate) fn forget_caches(&self) {
        kernel_caches::forget_unused().unwrap();
    }

    /// Waits until a container needs a server. One request may hold all of them: they share pages.
    pub(crate) fn readers_wait(&self) {
        let connections = lazy_connections_below(&self.daemon().root()).unwrap();
        super::wait_for_unanswered(&connections, |waiting| waiting.iter().any(|one| *one > 0));
    }

    /// Waits until a holder, which is new perhaps, has everything.
    pub(crate) fn wait_until_all_is_held(&self) {
        super::wait_until("the holder has everything", PATIENCE, || {
            let now = Leaks::of(&self.stack).holder_files;
            match now >= self.before.holder_files {
                true => Ok(()),
                false => Err(format!("{now} of {}", self.before.holder_files)),
            }
        });
    }

    /// Waits until a server answers.
    pub(crate) fn wait_until_served(&self) {
        super::status(self.daemon());
    }

    /// Another version serves now, which may have more threads.
    pub(crate) fn is_served_by_another_version(&mut self) {
        self.wait_until_served();
        let now = Leaks::of(&self.stack).server_threads;
        self.before.server_threads = self.before.server_threads.max(now);
    }

    /// After all readers have ended: no process, mount, descriptor or thread more than before.
    pub(crate) fn nothing_leaks(&self) {
        let ctr = self.stack.containerd.ctr(NAMESPACE);
        let deadline = Instant::now() + Duration::from_secs(120);
        let more = |after: &Leaks| {
            after.mounts != self.before.mounts
                || after.server_files > self.before.server_files + 24
                || after.server_threads > self.before.server_threads + 8
                || after.holder_files > self.before.holder_files + 2
        };
        loop {
            let after = Leaks::of(&self.stack);
            if !more(&after) {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "{:?} became {after:?}",
                self.before
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(ctr.output(["tasks", "ls", "-q"]).unwrap(), "", "tasks stay");
        assert_eq!(lazy_mounts(&self.stack), self.layers);
        // And the image can be removed without a trace. containerd collects a snapshotter's
        // snapshots once per removal: its connection, which lost its server, must be back.
        super::wait_until("containerd reaches the server", PATIENCE, || {
            let listed = ctr.output(["snapshots", "--snapshotter", "soci", "ls"]);
            listed.map(drop).map_err(|error| error.to_string())
        });
        ctr.output(["images", "rm", "--sync", &self.reference])
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(120);
        while lazy_mounts(&self.stack) > 0 {
            assert!(Instant::now() < deadline, "mounts stay");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Leaks {
    fn of(stack: &Stack) -> Self {
        let count = |pid: u32, what: &str| {
            let entries = std::fs::read_dir(format!("/proc/{pid}/{what}"));
            entries.map_or(0, Iterator::count)
        };
        let server = stack.daemon.server_pid().unwrap();
        let holder = stack.daemon.holder_pid().unwrap();
        Self {
            mounts: lazy_mounts(stack),
            server_files: count(server, "fd"),
            server_threads: count(server, "task"),
            holder_files: count(holder, "fd"),
        }
    }
}

/// Containers that read.
pub(crate) struct Readers {
    until: Instant,
    asked: Cell<bool>,
    /// The folder with the file that ends them, and with their counts.
    told: PathBuf,
    containers: Vec<(&'static [&'static str], Running)>,
}

impl Readers {
    /// Whether they are still to read: at least for one round of what is done to the daemon, however long
    /// a busy machine takes.
    pub(crate) fn go_on(&self) -> bool {
        !self.asked.replace(true) || Instant::now() < self.until
    }

    /// Ends them and waits for their ends, which must be good ones; how many steps each mode took.
    pub(crate) fn finish(self) -> BTreeMap<String, u64> {
        std::fs::write(self.told.join("end"), "").unwrap();
        for (modes, container) in self.containers {
            let output = container.wait().unwrap();
            assert!(
                output.status.success(),
                "{modes:?}: {}\n{}{}",
                output.status,
                output.stdout,
                output.stderr
            );
        }
        let steps = |mode: &&str| {
            let count = std::fs::read_to_string(self.told.join(mode)).unwrap();
            ((*mode).to_owned(), count.parse::<u64>().unwrap())
        };
        let steps: BTreeMap<_, _> = READER_MODES.iter().map(steps).collect();
        assert!(steps.values().all(|count| *count > 0), "{steps:?}");
        steps
    }
}
