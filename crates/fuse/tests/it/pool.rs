//! Serving real mounts without any layer: panics, many mounts, taking up a live connection. Needs
//! root and /dev/fuse.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use soci_fuse::{
    Attr, Connection, ConnectionFacts, DirBuffer, Entry, Errno, FileSystem, Journal, MountOptions,
    Operation, Pool, Reply, Request,
};

/// A root whose entries are called after numbers; `panic` panics, `secret` is never answered.
struct Numbers;

const TTL: Duration = Duration::ZERO;

fn attr(ino: u64) -> Attr {
    let mode = if ino == 1 { 0o40755 } else { 0o100_644 };
    Attr {
        ino,
        mode,
        nlink: 1,
        size: 3,
        ..Attr::default()
    }
}

impl FileSystem for Numbers {
    fn handle(&self, request: &Request<'_>, reply: Reply) {
        match request.operation {
            Operation::Lookup { name: b"panic" } => panic!("on purpose"),
            Operation::Lookup { name: b"forgotten" } => drop(reply),
            Operation::Lookup { name } => {
                let number = std::str::from_utf8(name)
                    .ok()
                    .and_then(|name| name.parse().ok());
                match number {
                    Some(number) => {
                        let attr = Some(attr(number));
                        reply.entry(&Entry {
                            attr,
                            entry_ttl: TTL,
                            attr_ttl: TTL,
                        });
                    }
                    None => reply.error(Errno::NOENT),
                }
            }
            Operation::GetAttr => reply.attr(&attr(request.node), TTL),
            Operation::ReadDir { size, plus, .. } => reply.directory(&DirBuffer::new(size, plus)),
            // As a kernel without NO_OPEN_SUPPORT needs it.
            Operation::Open | Operation::OpenDir => reply.opened(request.node, 0),
            Operation::Read { .. } => reply.data(format!("{:03}", request.node).as_bytes()),
            _ => reply.error(Errno::NOSYS),
        }
    }
}

struct Mountpoint(tempfile::TempDir);

impl Mountpoint {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().to_owned()
    }

    fn mount(&self) -> Connection {
        soci_fuse::mount(&self.path(), &MountOptions::default()).unwrap()
    }
}

impl Drop for Mountpoint {
    fn drop(&mut self) {
        soci_fuse::unmount(self.0.path()).unwrap();
    }
}

#[test]
fn a_file_system_that_panics_or_drops_a_request_answers_eio_and_continues() {
    let pool = Pool::new(1, Journal::create().unwrap()).unwrap();
    let at = Mountpoint::new();
    let _served = pool.serve(at.mount(), Arc::new(Numbers)).unwrap();
    for name in ["panic", "forgotten"] {
        let error = std::fs::metadata(at.path().join(name)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()));
        assert_eq!(std::fs::read(at.path().join("42")).unwrap(), b"042");
    }
}

#[test]
fn a_few_threads_serve_many_mounts() {
    let pool = Pool::new(2, Journal::create().unwrap()).unwrap();
    let mounts: Vec<_> = (0..40).map(|_| Mountpoint::new()).collect();
    let served: Vec<_> = mounts
        .iter()
        .map(|at| pool.serve(at.mount(), Arc::new(Numbers)).unwrap())
        .collect();
    assert_eq!(pool.connections(), 40);
    std::thread::scope(|scope| {
        for at in &mounts {
            scope.spawn(move || {
                for number in 2..102 {
                    let seen = std::fs::read(at.path().join(number.to_string())).unwrap();
                    assert_eq!(seen, format!("{number:03}").as_bytes());
                }
            });
        }
    });
    drop(mounts);
    for served in served {
        assert!(served.wait_ended(Duration::from_secs(60)));
    }
    assert_eq!(pool.connections(), 0);
}

#[test]
fn a_live_connection_is_adopted_by_another_pool_without_init() {
    let at = Mountpoint::new();
    let first = Pool::new(2, Journal::create().unwrap()).unwrap();
    let served = first.serve(at.mount(), Arc::new(Numbers)).unwrap();
    assert_eq!(std::fs::read(at.path().join("7")).unwrap(), b"007");
    let kept = serde_json::to_vec(served.facts()).unwrap();
    let descriptor = served.duplicate().unwrap().unwrap();
    first.shutdown();
    assert!(served.has_ended());
    // No server: a request waits instead of failing.
    let path = at.path().join("8");
    let reader = std::thread::spawn(move || std::fs::read(path).unwrap());
    let mut queue = [PollFd::new(&descriptor, PollFlags::IN)];
    let limit = Timespec::try_from(Duration::from_secs(60)).unwrap();
    assert_eq!(poll(&mut queue, Some(&limit)), Ok(1), "no request");
    assert!(!reader.is_finished());
    let facts: ConnectionFacts = serde_json::from_slice(&kept).unwrap();
    let second = Pool::new(1, Journal::create().unwrap()).unwrap();
    let connection = Connection::from_parts(descriptor, facts);
    let _served = second.serve(connection, Arc::new(Numbers)).unwrap();
    assert_eq!(reader.join().unwrap(), b"008");
    assert_eq!(std::fs::read(at.path().join("9")).unwrap(), b"009");
}

#[test]
fn a_connection_whose_requests_cannot_be_read_ends_although_a_holder_keeps_it() {
    let at = Mountpoint::new();
    let connection = at.mount();
    let facts = connection.facts().clone();
    let holder = Arc::new(Mutex::new(Some(connection)));
    let path = at.path().join("8");
    let reader = std::thread::spawn(move || std::fs::read(path));
    let pool = Pool::new(2, Journal::create().unwrap()).unwrap();
    let (held, ours) = (holder.clone(), facts.key);
    pool.on_end(move |facts| {
        assert_eq!(facts.key, ours);
        held.lock().take();
    });
    // Opened again it belongs to no connection: poll(2) says that there is an error, and read(2) which.
    let unusable = std::fs::File::options().read(true).open("/dev/fuse");
    let unusable = Connection::from_parts(unusable.unwrap().into(), facts);
    let served = pool.serve(unusable, Arc::new(Numbers)).unwrap();
    assert!(served.wait_ended(Duration::from_secs(60)));
    // It waited, or came when all was over.
    let error = reader.join().unwrap().unwrap_err();
    let ends = [Errno::CONNABORTED, Errno::NOTCONN].map(|end| Some(end.raw_os_error()));
    assert!(ends.contains(&error.raw_os_error()), "{error}");
    let error = std::fs::read(at.path().join("9")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::NOTCONN.raw_os_error()));
    assert!(holder.lock().is_none());
}

#[test]
fn mounting_where_nothing_is_fails_and_unmounting_it_does_not() {
    let gone = PathBuf::from("/nonexistent/mount/point");
    let error = soci_fuse::mount(&gone, &MountOptions::default()).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/mount/point"));
    soci_fuse::unmount(&gone).unwrap();
}
