//! Thousands of readers of one mount whose reads are not answered, on a kernel that cannot send requests
//! again: other mounts are served, and the readers can be killed. Needs root and /dev/fuse.

use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use soci_fuse::{
    Attr, DirBuffer, Entry, Errno, FileSystem, Journal, MountOptions, Operation, Pool, Reply,
    Request, SessionLimits,
};

/// Longest wait for what is to happen at once.
const LONG: Duration = Duration::from_secs(120);

/// Environment variables of the process of the readers.
const FILE: &str = "SOCI_TEST_CROWD_FILE";
const COUNT: &str = "SOCI_TEST_CROWD_COUNT";
/// Environment variable with another number of readers in each process, to measure what they cost.
const READERS: &str = "SOCI_TEST_CROWD_READERS";

/// Number of look-ups whose times are compared.
const ANSWERS: usize = 200;

/// A signal that the readers handle.
const HANDLED: i32 = 40;

/// One file, `file`, whose reads are kept.
#[derive(Default)]
struct KeepsReads(Mutex<Vec<Reply>>);

fn attr(ino: u64) -> Attr {
    Attr {
        ino,
        mode: if ino == 1 { 0o40755 } else { 0o100_644 },
        nlink: 1,
        size: 3,
        ..Attr::default()
    }
}

impl FileSystem for KeepsReads {
    fn handle(&self, request: &Request<'_>, reply: Reply) {
        match request.operation {
            Operation::Lookup { .. } => reply.entry(&Entry {
                attr: Some(attr(2)),
                entry_ttl: Duration::ZERO,
                attr_ttl: Duration::ZERO,
            }),
            Operation::GetAttr => reply.attr(&attr(request.node), Duration::ZERO),
            Operation::ReadDir { size, plus, .. } => reply.directory(&DirBuffer::new(size, plus)),
            Operation::Open | Operation::OpenDir => reply.opened(0, 0),
            Operation::Read { .. } => self.0.lock().push(reply.defer(request)),
            _ => reply.error(Errno::NOSYS),
        }
    }
}

struct Mount {
    at: tempfile::TempDir,
    file_system: Arc<KeepsReads>,
}

impl Mount {
    fn new(pool: &Pool) -> Self {
        let at = tempfile::tempdir().unwrap();
        let options = MountOptions {
            limits: SessionLimits {
                resend: false,
                ..SessionLimits::default()
            },
            ..MountOptions::default()
        };
        let connection = soci_fuse::mount(at.path(), &options).unwrap();
        let file_system = Arc::new(KeepsReads::default());
        pool.serve(connection, file_system.clone()).unwrap();
        Self { at, file_system }
    }

    fn file(&self) -> PathBuf {
        self.at.path().join("file")
    }

    fn has_kept(&self, count: usize) {
        let begin = Instant::now();
        while self.file_system.0.lock().len() < count {
            assert!(
                begin.elapsed() < LONG,
                "{}",
                self.file_system.0.lock().len()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Looks a name up, which always needs the server.
    fn answers(&self) {
        let (done, answered) = channel();
        let file = self.file();
        std::thread::spawn(move || done.send(std::fs::metadata(file).unwrap().len()));
        assert_eq!(answered.recv_timeout(LONG), Ok(3), "no answer");
    }
}

impl Mount {
    /// The longest time that a number of look-ups take, one after the other.
    fn slowest_answer(&self) -> Duration {
        let answer = |_| {
            let begin = Instant::now();
            self.answers();
            begin.elapsed()
        };
        (0..ANSWERS).map(answer).max().unwrap()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        soci_fuse::unmount(self.at.path()).unwrap();
    }
}

/// A process with many threads that read one file each.
struct Crowd(Child);

impl Crowd {
    fn start(file: &Path, count: usize) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "crowd::the_readers_themselves", "--nocapture"]);
        command.env(FILE, file).env(COUNT, count.to_string());
        Self(command.spawn().unwrap())
    }

    fn ends(&mut self) -> std::process::ExitStatus {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(begin.elapsed() < LONG, "the readers do not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.try_wait();
    }
}

/// Does nothing unless it was started by another test, as the process of the readers.
#[test]
fn the_readers_themselves() {
    let Some(file) = std::env::var_os(FILE).map(PathBuf::from) else {
        return;
    };
    let count: usize = std::env::var(COUNT).unwrap().parse().unwrap();
    signal_hook::flag::register(HANDLED, Arc::default()).unwrap();
    let direct = rustix::fs::OFlags::DIRECT.bits().cast_signed();
    let threads: Vec<_> = (0..count)
        .map(|_| {
            let file = file.clone();
            let read = move || {
                let mut options = std::fs::OpenOptions::new();
                let file = options.read(true).custom_flags(direct).open(file).unwrap();
                let mut content = [0; 3];
                file.read_exact_at(&mut content, 0).unwrap();
                assert_eq!(&content, b"yes");
            };
            let thread = std::thread::Builder::new().stack_size(64 << 10);
            thread.spawn(read).unwrap()
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn readers_that_fill_the_journal_leave_other_mounts_answering_and_can_be_killed() {
    const PROCESSES: usize = 2;
    let readers = std::env::var(READERS).map_or(3000, |number| number.parse().unwrap());
    let journal = Journal::create().unwrap();
    let pool = Pool::new(2, journal.clone()).unwrap();
    let (crowded, other) = (Mount::new(&pool), Mount::new(&pool));
    let alone = other.slowest_answer();
    let mut crowds: Vec<_> = (0..PROCESSES)
        .map(|_| Crowd::start(&crowded.file(), readers))
        .collect();
    crowded.has_kept(PROCESSES * readers);
    assert!(journal.unrecorded() > 0, "more than the connection's share");

    let beside = other.slowest_answer();
    println!(
        "slowest of {ANSWERS} look-ups in another mount: {alone:?} alone, {beside:?} beside {} readers",
        PROCESSES * readers
    );
    crowded.answers();
    for crowd in &mut crowds {
        crowd.0.kill().unwrap();
    }
    for crowd in &mut crowds {
        assert!(!crowd.ends().success());
    }
    other.answers();
    crowded.answers();
    crowded.file_system.0.lock().clear();
    assert_eq!(journal.in_flight(), 0);
}

#[test]
fn a_storm_of_signals_that_are_handled_leaves_other_mounts_answering_and_the_readers_waiting() {
    const THREADS: usize = 2000;
    let journal = Journal::create().unwrap();
    let pool = Pool::new(2, journal.clone()).unwrap();
    let (crowded, other) = (Mount::new(&pool), Mount::new(&pool));
    let mut crowd = Crowd::start(&crowded.file(), THREADS);
    crowded.has_kept(THREADS);

    let tasks = std::fs::read_dir(format!("/proc/{}/task", crowd.0.id())).unwrap();
    let tasks: Vec<_> = tasks.map(|task| task.unwrap().file_name()).collect();
    assert!(tasks.len() > THREADS);
    let script = format!("kill -{HANDLED} \"$@\"");
    let mut kill = Command::new("sh");
    kill.args(["-c", &script, "sh"]).args(tasks);
    assert!(kill.status().unwrap().success());
    // Over several rounds of the thread that looks at interrupted requests, which nothing shows.
    for _ in 0..10 {
        other.answers();
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(journal.in_flight(), THREADS, "all of them wait");
    for reply in crowded.file_system.0.lock().drain(..) {
        reply.data(b"yes");
    }
    assert!(crowd.ends().success());
    other.answers();
}
