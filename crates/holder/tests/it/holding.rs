//! A holder and its clients, in one process. Needs root: a holder serves no other user.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use soci_holder::{ABANDONED_FILE, Abandoned, HeldFd, HolderClient, HolderError};

const LONG: Duration = Duration::from_secs(600);

struct Running {
    root: tempfile::TempDir,
    thread: JoinHandle<()>,
}

impl Running {
    fn start() -> Self {
        // Longer than the 108 bytes that a socket's address has room for.
        let root = tempfile::Builder::new()
            .prefix(&"long".repeat(30))
            .tempdir()
            .unwrap();
        let path = root.path().to_owned();
        let thread = std::thread::spawn(move || soci_holder::run(&path).unwrap());
        while HolderClient::look(root.path()).unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        Self { root, thread }
    }

    fn server(&self, abandon_after: Duration) -> HolderClient {
        HolderClient::serve(self.root.path(), abandon_after)
            .unwrap()
            .unwrap()
    }

    fn look(&self) -> HolderClient {
        HolderClient::look(self.root.path()).unwrap().unwrap()
    }

    fn ended(self) -> tempfile::TempDir {
        self.thread.join().unwrap();
        assert!(HolderClient::look(self.root.path()).unwrap().is_none());
        self.root
    }
}

fn file_with(text: &str) -> OwnedFd {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    rustix::io::write(&writer, text.as_bytes()).unwrap();
    reader
}

fn text_of(kept: HeldFd) -> String {
    let mut text = String::new();
    File::from(kept.descriptor)
        .read_to_string(&mut text)
        .unwrap();
    text
}

/// Whether the holder has closed the reading end of a pipe.
fn is_closed(writer: &OwnedFd) -> bool {
    rustix::io::write(writer, b"x") == Err(rustix::io::Errno::PIPE)
}

#[test]
fn what_a_server_gave_is_there_for_the_next_one_also_after_it_is_gone() {
    let holder = Running::start();
    let first = holder.server(LONG);
    first
        .put("fuse/1", "note 1", file_with("one").as_fd())
        .unwrap();
    first.put("other", "", file_with("old").as_fd()).unwrap();
    first.put("other", "new", file_with("new").as_fd()).unwrap();
    first.put("gone", "", file_with("gone").as_fd()).unwrap();
    first.remove("gone").unwrap();
    first.remove("never there").unwrap();
    drop(first);
    let second = loop {
        match HolderClient::serve(holder.root.path(), LONG) {
            Ok(client) => break client.unwrap(),
            Err(HolderError::Refused(_)) => std::thread::sleep(Duration::from_millis(1)),
            Err(error) => panic!("{error}"),
        }
    };
    let kept = second.list().unwrap();
    let facts: Vec<_> = kept
        .iter()
        .map(|k| (k.key.clone(), k.note.clone()))
        .collect();
    let expected = [("fuse/1", "note 1"), ("other", "new")];
    assert_eq!(facts, expected.map(|(k, n)| (k.to_owned(), n.to_owned())));
    let texts: Vec<_> = kept.into_iter().map(text_of).collect();
    assert_eq!(texts, ["one", "new"]);
    second.quit().unwrap();
    holder.ended();
}

#[test]
fn there_is_one_server_at_a_time_and_others_may_look() {
    let holder = Running::start();
    let server = holder.server(LONG);
    let refused = HolderClient::serve(holder.root.path(), LONG).unwrap_err();
    let pid = std::process::id();
    assert!(refused.to_string().contains(&pid.to_string()), "{refused}");
    let facts = *holder.look().info();
    assert_eq!(
        (facts.pid, facts.server, facts.alone_for),
        (pid, Some(pid), None)
    );
    assert_eq!(facts.abandon_after, LONG);
    server.quit().unwrap();
    holder.ended();
}

#[test]
fn without_a_server_the_connections_are_closed_in_the_end_and_nothing_else_before() {
    let holder = Running::start();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let note = holder.root.path().join(ABANDONED_FILE);
    std::fs::write(&note, "of an earlier version").unwrap();
    std::fs::set_permissions(&note, std::fs::Permissions::from_mode(0o644)).unwrap();
    let server = holder.server(Duration::from_secs(1));
    server.put("fuse/1", "", reader.as_fd()).unwrap();
    drop(reader);
    // One without a server ends in the same time.
    let other = Running::start();
    let (_, unused) = rustix::pipe::pipe().unwrap();
    let gone = other.server(Duration::from_secs(1));
    gone.put("fuse/1", "", unused.as_fd()).unwrap();
    drop(gone);
    other.ended();
    assert!(!is_closed(&writer), "there is a server");
    let begin = Instant::now();
    drop(server);
    let root = holder.ended();
    assert!(begin.elapsed() >= Duration::from_secs(1));
    assert!(is_closed(&writer));
    let note = root.path().join(ABANDONED_FILE);
    let mode = note.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let words = std::fs::read(note).unwrap();
    let words: Abandoned = serde_json::from_slice(&words).unwrap();
    assert_eq!(words.connections, 1);
    assert!(words.reason.contains("1 s"), "{words:?}");
}

#[test]
fn an_operator_closes_the_connections_at_once_but_not_under_a_server() {
    let holder = Running::start();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let server = holder.server(LONG);
    server.put("fuse/1", "", reader.as_fd()).unwrap();
    server.put("socket", "", file_with("s").as_fd()).unwrap();
    drop(reader);
    let operator = holder.look();
    let refused = operator.abandon(false).unwrap_err();
    assert!(refused.to_string().contains("serves"), "{refused}");
    assert!(!is_closed(&writer));
    assert_eq!(operator.abandon(true).unwrap(), 1);
    assert!(is_closed(&writer));
    let left: Vec<_> = server.list().unwrap().into_iter().map(|k| k.key).collect();
    assert_eq!(left, ["socket"]);
    server.quit().unwrap();
    holder.ended();
}

#[test]
fn a_second_holder_of_a_root_leaves_the_first_alone() {
    let holder = Running::start();
    soci_holder::run(holder.root.path()).unwrap();
    let server = holder.server(LONG);
    server.quit().unwrap();
    holder.ended();
}

#[test]
fn the_socket_is_for_root_only_and_a_root_without_holder_has_none() {
    let holder = Running::start();
    let socket = holder.root.path().join("holder.sock");
    let mode = socket.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(
        HolderClient::look(Path::new("/nonexistent"))
            .unwrap()
            .is_none()
    );
    // A process of another user is refused, even if it gets hold of the socket.
    let open = |mode| std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(&socket, open(0o666)).unwrap();
    std::fs::set_permissions(holder.root.path(), open(0o755)).unwrap();
    let root = holder.root.path().to_owned();
    let stranger = std::thread::spawn(move || {
        let other = rustix::process::Uid::from_raw(65534);
        rustix::thread::set_thread_uid(other).unwrap();
        HolderClient::look(&root).map(|client| client.is_none())
    });
    // It gets as far as a connection, which is closed without an answer.
    match stranger.join().unwrap() {
        Ok(is_none) => assert!(is_none),
        Err(HolderError::Talk(_)) => {}
        Err(error) => panic!("{error}"),
    }
    let server = holder.server(LONG);
    server.quit().unwrap();
    holder.ended();
}
