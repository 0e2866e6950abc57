//! What becomes of requests in flight when their server goes: sent again by the kernel, or answered
//! from the journal. Needs root and /dev/fuse; the kernel's part needs Linux 6.9.
//!
//! A process of its own: a program that is started has every FUSE descriptor of its parent open until exec,
//! and a mount whose server has gone would keep it there.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use soci_fuse::{
    Attr, Connection, ConnectionFacts, DirBuffer, Entry, Errno, ExitKind, FileSystem, Journal,
    MountOptions, Operation, Pool, Reply, Request, SessionLimits,
};

/// One file, `file`, whose reads are answered, or kept for ever by a server that is about to die.
#[derive(Default)]
struct OneFile {
    keeps: bool,
    kept: Mutex<Vec<Reply>>,
    reads: AtomicU32,
}

const TTL: Duration = Duration::from_secs(60);

fn attr(ino: u64) -> Attr {
    Attr {
        ino,
        mode: if ino == 1 { 0o40755 } else { 0o100_644 },
        nlink: 1,
        size: 3,
        ..Attr::default()
    }
}

impl FileSystem for OneFile {
    fn handle(&self, request: &Request<'_>, reply: Reply) {
        match request.operation {
            Operation::Lookup { .. } => reply.entry(&Entry {
                attr: Some(attr(2)),
                entry_ttl: TTL,
                attr_ttl: TTL,
            }),
            Operation::GetAttr => reply.attr(&attr(request.node), TTL),
            Operation::ReadDir { size, plus, .. } => reply.directory(&DirBuffer::new(size, plus)),
            Operation::Open | Operation::OpenDir => reply.opened(0, 0),
            Operation::Read { .. } => {
                self.reads.fetch_add(1, Ordering::SeqCst);
                if self.keeps {
                    self.kept.lock().push(reply.defer(request));
                } else {
                    reply.data(b"yes");
                }
            }
            _ => reply.error(Errno::NOSYS),
        }
    }
}

struct Mountpoint(tempfile::TempDir);

impl Mountpoint {
    fn path(&self) -> PathBuf {
        self.0.path().to_owned()
    }
}

impl Drop for Mountpoint {
    fn drop(&mut self) {
        soci_fuse::unmount(self.0.path()).unwrap();
    }
}

/// A server whose process could be killed at any time: what stays is what the holder has.
struct Server {
    pool: Pool,
    file_system: Arc<OneFile>,
}

/// What a holder keeps.
struct Held {
    connection: std::os::fd::OwnedFd,
    facts: ConnectionFacts,
    journal: std::os::fd::OwnedFd,
}

fn begin(at: &Path, resend: bool) -> (Server, Held) {
    let options = MountOptions {
        limits: SessionLimits {
            resend,
            ..SessionLimits::default()
        },
        ..MountOptions::default()
    };
    let connection = soci_fuse::mount(at, &options).unwrap();
    assert_eq!(
        connection.facts().negotiated.can_resend(),
        resend,
        "this test needs Linux 6.9 or later"
    );
    let journal = Journal::create().unwrap();
    let held = Held {
        connection: connection.duplicate().unwrap(),
        facts: connection.facts().clone(),
        journal: journal.descriptor().unwrap(),
    };
    let server = Server {
        pool: Pool::new(2, journal).unwrap(),
        file_system: Arc::new(OneFile {
            keeps: true,
            ..OneFile::default()
        }),
    };
    let served = server.pool.serve(connection, server.file_system.clone());
    served.unwrap();
    (server, held)
}

impl Held {
    /// The server dies; another one takes over.
    fn successor(&self, dead: Server, exit: ExitKind, keeps: bool) -> Server {
        dead.pool.shutdown();
        drop(dead);
        let journal = Journal::take_over(self.journal.try_clone().unwrap(), exit).unwrap();
        let connection = self.connection.try_clone().unwrap();
        let connection = Connection::from_parts(connection, self.facts.clone());
        let server = Server {
            pool: Pool::new(1, journal).unwrap(),
            file_system: Arc::new(OneFile {
                keeps,
                ..OneFile::default()
            }),
        };
        let served = server.pool.adopt(connection, server.file_system.clone());
        served.unwrap();
        server
    }
}

impl Server {
    /// Waits until a read has arrived and is being kept.
    fn has_read(&self) {
        while self.file_system.kept.lock().is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Reads without the page cache: a failed readahead would be requested once more.
fn reader(at: &Mountpoint) -> JoinHandle<std::io::Result<Vec<u8>>> {
    let file = at.path().join("file");
    let direct = rustix::fs::OFlags::DIRECT.bits().cast_signed();
    std::thread::spawn(move || {
        let mut file = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(direct)
            .open(file)?;
        let mut content = vec![0; 3];
        file.read_exact(&mut content)?;
        Ok(content)
    })
}

/// A program that is started has this process's files open until it runs, and then waits while it closes
/// one of a mount whose server is gone: a test that starts one does so while no other test has any.
static ALONE: RwLock<()> = RwLock::new(());

fn a_read_in_flight_survives(resend: bool) {
    let _beside_others = ALONE.read();
    for death in [ExitKind::Planned, ExitKind::Killed, ExitKind::Crashed] {
        let at = Mountpoint(tempfile::tempdir().unwrap());
        let (first, held) = begin(&at.path(), resend);
        let reader = reader(&at);
        first.has_read();
        let second = held.successor(first, death, false);
        assert_eq!(reader.join().unwrap().unwrap(), b"yes", "{death:?}");
        assert_eq!(second.file_system.reads.load(Ordering::SeqCst), 1);
    }
}

#[test]
fn a_read_in_flight_is_sent_again_and_answered_by_the_next_server() {
    a_read_in_flight_survives(true);
}

#[test]
fn a_read_in_flight_is_answered_from_the_journal_where_the_kernel_cannot_send_it_again() {
    a_read_in_flight_survives(false);
}

fn a_fatal_read_ends(resend: bool) {
    let _beside_others = ALONE.read();
    let at = Mountpoint(tempfile::tempdir().unwrap());
    let (first, held) = begin(&at.path(), resend);
    let reader = reader(&at);
    first.has_read();
    let second = held.successor(first, ExitKind::Crashed, true);
    second.has_read();
    let third = held.successor(second, ExitKind::Crashed, false);
    let error = reader.join().unwrap().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()));
    // It alone: the file can be read, should a reader try again.
    assert_eq!(std::fs::read(at.path().join("file")).unwrap(), b"yes");
    drop(third);
}

#[test]
fn a_read_in_flight_at_two_crashes_is_answered_eio_and_others_continue() {
    a_fatal_read_ends(true);
}

#[test]
fn the_same_from_the_journal() {
    a_fatal_read_ends(false);
}

/// Puts more requests in flight than the journal has entries for one connection.
fn more_readers_than_entries(at: &Mountpoint) -> Vec<JoinHandle<std::io::Result<Vec<u8>>>> {
    (0..2100).map(|_| reader(at)).collect()
}

#[test]
fn requests_that_had_no_entry_are_answered_eio_after_a_crash_and_the_others_as_ever() {
    let _beside_others = ALONE.read();
    let at = Mountpoint(tempfile::tempdir().unwrap());
    let (first, held) = begin(&at.path(), false);
    let readers = more_readers_than_entries(&at);
    while first.file_system.kept.lock().len() < readers.len() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let second = held.successor(first, ExitKind::Killed, false);
    let results = readers.into_iter().map(|reader| reader.join().unwrap());
    let (read, failed): (Vec<_>, Vec<_>) = results.partition(Result::is_ok);
    assert_eq!((read.len(), failed.len()), (2048, 2100 - 2048));
    let eio = Some(Errno::IO.raw_os_error());
    assert!(
        failed
            .iter()
            .all(|it| it.as_ref().unwrap_err().raw_os_error() == eio)
    );
    assert_eq!(std::fs::read(at.path().join("file")).unwrap(), b"yes");
    drop(second);
}

fn a_planned_end_blames_no_request(resend: bool) {
    let _beside_others = ALONE.read();
    let at = Mountpoint(tempfile::tempdir().unwrap());
    let (mut server, held) = begin(&at.path(), resend);
    let reader = reader(&at);
    for _ in 0..4 {
        server.has_read();
        server = held.successor(server, ExitKind::Planned, true);
    }
    server.has_read();
    let last = held.successor(server, ExitKind::Killed, false);
    assert_eq!(reader.join().unwrap().unwrap(), b"yes");
    drop(last);
}

#[test]
fn planned_ends_are_not_counted_against_a_request() {
    a_planned_end_blames_no_request(true);
    a_planned_end_blames_no_request(false);
}

/// Killed while there is no server, a reader ends as soon as there is one.
#[test]
fn a_reader_that_is_killed_while_it_waits_ends() {
    let _alone = ALONE.write();
    for resend in [true, false] {
        let at = Mountpoint(tempfile::tempdir().unwrap());
        let (first, held) = begin(&at.path(), resend);
        let mut cat = std::process::Command::new("cat")
            .arg(at.path().join("file"))
            .spawn()
            .unwrap();
        first.has_read();
        let second = held.successor(first, ExitKind::Killed, true);
        second.has_read();
        cat.kill().unwrap();
        assert!(!cat.wait().unwrap().success());
        drop(second);
    }
}
