//! The holder itself: one thread, one table of descriptors, one time limit.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use crate::protocol::{PROTOCOL, Request, Response};
use crate::socket::{self, Conn};
use crate::{CONNECTION_PREFIX, HolderError, PROCESS_NAME};

/// Name, below the root folder, of the file that a holder writes when it gives connections up.
pub const ABANDONED_FILE: &str = "holder.abandoned.json";

const LOCK: &str = "holder.lock";

/// Default of `abandon_after`, until a server sets it.
const ABANDON_AFTER: Duration = Duration::from_secs(600);

/// How long it runs without a server while it keeps no connection.
const IDLE: Duration = Duration::from_secs(15);

/// A holder's message to the next server: it has given connections up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abandoned {
    /// Seconds since 1970.
    pub at: u64,
    /// Number of connections.
    pub connections: usize,
    /// Why, for the log.
    pub reason: String,
}

struct Item {
    descriptor: OwnedFd,
    note: String,
}

struct Client {
    conn: Conn,
    server: bool,
    pid: Option<u32>,
}

struct Holder {
    root: PathBuf,
    items: BTreeMap<String, Item>,
    clients: Vec<Client>,
    abandon_after: Duration,
    /// When the last server left.
    alone_since: Option<Instant>,
    ending: bool,
}

/// Replaces a file by one that only its owner may read.
fn write_private(path: &Path, text: &[u8]) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    // It may have another mode.
    let _ = std::fs::remove_file(path);
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    file?.write_all(text)
}

/// Holds descriptors for the servers of `root` until a server or SIGINT ends it, or no server comes for too
/// long. Returns immediately if the root has a holder already.
///
/// # Errors
/// If it cannot listen.
pub fn run(root: &Path) -> Result<(), HolderError> {
    // Fails only for the leader of a process group, which is harmless.
    let _ = rustix::process::setsid();
    let _ = rustix::thread::set_name(&std::ffi::CString::new(PROCESS_NAME).unwrap_or_default());
    // Losing the holder hurts every container: other processes are to be killed first when memory is short.
    // A server's score is higher; back to an ordinary one needs no privilege.
    let scores = ["-999", "0"].iter();
    let _ = scores
        .map(|score| std::fs::write("/proc/self/oom_score_adj", score))
        .any(|written| written.is_ok());
    protect_memory();
    let lock_path = root.join(LOCK);
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&lock_path)
        .map_err(HolderError::path("open", &lock_path))?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
        return Ok(());
    }
    let mut give_up = signals().map_err(HolderError::talk)?;
    let listener = socket::listen_at(root)?;
    let mut holder = Holder {
        root: root.to_owned(),
        items: BTreeMap::new(),
        clients: Vec::new(),
        abandon_after: ABANDON_AFTER,
        alone_since: Some(Instant::now()),
        ending: false,
    };
    holder.serve(&listener, &mut give_up);
    // No other process creates it while we have the lock.
    let _ = std::fs::remove_file(socket::path(root));
    // Closing is not enough (flock(2)): a child that was forked just now may have the file open.
    let _ = flock(&lock, FlockOperation::Unlock);
    Ok(())
}

/// Disables core dumps and access to this process by others: it holds the memory with credentials. Best
/// effort: the descriptors are more important.
fn protect_memory() {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    // In tests it is a thread of another program.
    if crate::root_of_holder().is_none() {
        return;
    }
    let no_core = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let _ = setrlimit(Resource::Core, no_core);
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// Installs the handlers: SIGINT arrives on the returned stream. Other signals that end programs are
/// ignored: they are meant for the server, or come from the terminal that it was started in.
fn signals() -> std::io::Result<UnixStream> {
    let (reader, writer) = UnixStream::pair()?;
    reader.set_nonblocking(true)?;
    signal_hook::low_level::pipe::register(SIGINT, writer)?;
    for ignored in [SIGTERM, SIGHUP, SIGQUIT] {
        signal_hook::flag::register(ignored, std::sync::Arc::default())?;
    }
    Ok(reader)
}

impl Holder {
    fn serve(&mut self, listener: &OwnedFd, give_up: &mut UnixStream) {
        while !self.ending {
            let (new_client, signal, ready) = {
                let mut watched = vec![
                    PollFd::new(listener, PollFlags::IN),
                    PollFd::new(&*give_up, PollFlags::IN),
                ];
                let conns = self.clients.iter().map(|client| &client.conn);
                watched.extend(conns.map(|conn| PollFd::new(conn, PollFlags::IN)));
                let limit = self.time_left().map(|left| {
                    // Not to wake up just before the end.
                    let left = left + Duration::from_millis(1);
                    Timespec::try_from(left).unwrap_or(Timespec {
                        tv_sec: 1,
                        tv_nsec: 0,
                    })
                });
                match poll(&mut watched, limit.as_ref()) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(_) => std::thread::sleep(Duration::from_millis(100)),
                }
                let mut ready = watched.iter().map(|fd| !fd.revents().is_empty());
                let (new_client, signal) = (ready.next(), ready.next());
                let ready: Vec<bool> = ready.collect();
                (new_client == Some(true), signal == Some(true), ready)
            };
            if signal && give_up.read(&mut [0; 16]).is_ok() {
                self.abandon("the holder got SIGINT");
                return;
            }
            // From the back, because clients that leave are removed.
            for index in (0..ready.len()).rev() {
                if ready.get(index) == Some(&true) {
                    self.receive_from(index);
                }
            }
            if new_client && let Ok(conn) = socket::accept_from(listener) {
                self.clients.push(Client {
                    pid: conn.peer(),
                    conn,
                    server: false,
                });
            }
            if self.time_left() == Some(Duration::ZERO) {
                if self.connections() > 0 {
                    let seconds = self.abandon_after.as_secs();
                    self.abandon(&format!("no server came for {seconds} s"));
                }
                return;
            }
        }
    }

    /// Time until it has been without a server for too long; `None` while there is one.
    fn time_left(&self) -> Option<Duration> {
        let limit = match self.connections() {
            0 => self.abandon_after.min(IDLE),
            _ => self.abandon_after,
        };
        self.alone_since
            .map(|since| limit.saturating_sub(since.elapsed()))
    }

    fn connections(&self) -> usize {
        let connections = |key: &&String| key.starts_with(CONNECTION_PREFIX);
        self.items.keys().filter(connections).count()
    }

    fn server(&self) -> Option<u32> {
        let server = self.clients.iter().find(|client| client.server)?;
        Some(server.pid.unwrap_or(0))
    }

    /// Closes the connections: requests that wait fail. Returns their number.
    fn abandon(&mut self, reason: &str) -> usize {
        let connections = self.connections();
        self.items
            .retain(|key, _| !key.starts_with(CONNECTION_PREFIX));
        if connections > 0 {
            let at = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
            let note = Abandoned {
                at: at.as_secs(),
                connections,
                reason: reason.to_owned(),
            };
            // Without it the next server logs only that the connections are gone.
            let _ = serde_json::to_vec(&note)
                .map(|note| write_private(&self.root.join(ABANDONED_FILE), &note));
        }
        connections
    }

    /// Handles one message of a client; removes a client that left or violates the protocol.
    fn receive_from(&mut self, index: usize) {
        let Some(client) = self.clients.get(index) else {
            return;
        };
        let stays = match client.conn.receive::<Request>() {
            Ok(Some((request, descriptor))) => self.answer(index, request, descriptor).is_ok(),
            Ok(None) | Err(_) => false,
        };
        if !stays {
            let gone = self.clients.remove(index);
            if gone.server {
                self.alone_since = Some(Instant::now());
            }
        }
    }

    fn answer(
        &mut self,
        index: usize,
        request: Request,
        descriptor: Option<OwnedFd>,
    ) -> Result<(), HolderError> {
        let answer = match request {
            Request::Hello {
                protocol,
                server,
                abandon_after,
            } => self.welcome(index, protocol, server, abandon_after),
            Request::Put { key, note } => match descriptor {
                Some(descriptor) => {
                    self.items.insert(key, Item { descriptor, note });
                    Response::Done { count: 1 }
                }
                None => refused("a descriptor is missing"),
            },
            Request::Remove { key } => Response::Done {
                count: usize::from(self.items.remove(&key).is_some()),
            },
            Request::Abandon { force } => match self.server() {
                Some(pid) if !force => refused(&format!("process {pid} serves the connections")),
                _ => Response::Done {
                    count: self.abandon("an operator requested it"),
                },
            },
            Request::Quit => {
                self.ending = true;
                Response::Done {
                    count: self.items.len(),
                }
            }
            Request::List => {
                let conn = self.conn(index)?;
                for (key, Item { descriptor, note }) in &self.items {
                    let item = Response::Item {
                        key: key.clone(),
                        note: note.clone(),
                    };
                    conn.send(&item, Some(descriptor.as_fd()))?;
                }
                Response::End
            }
        };
        self.conn(index)?.send(&answer, None)
    }

    fn conn(&self, index: usize) -> Result<&Conn, HolderError> {
        let client = self.clients.get(index).map(|client| &client.conn);
        client.ok_or_else(|| HolderError::Message("the client has left".to_owned()))
    }

    fn welcome(
        &mut self,
        index: usize,
        protocol: u32,
        server: bool,
        abandon_after: Option<u64>,
    ) -> Response {
        if protocol != PROTOCOL {
            return refused(&format!(
                "the holder speaks version {PROTOCOL} of the protocol, not {protocol}"
            ));
        }
        if server {
            if let Some(pid) = self.server() {
                return refused(&format!("process {pid} is the server already"));
            }
            if let Some(client) = self.clients.get_mut(index) {
                client.server = true;
            }
            if let Some(seconds) = abandon_after {
                self.abandon_after = Duration::from_secs(seconds);
            }
        }
        let alone_for = self.alone_since.map(|since| since.elapsed().as_millis());
        if server {
            self.alone_since = None;
        }
        Response::Welcome {
            protocol: PROTOCOL,
            pid: std::process::id(),
            server: self.server(),
            alone_for: alone_for.and_then(|millis| u64::try_from(millis).ok()),
            abandon_after: self.abandon_after.as_secs(),
        }
    }
}

fn refused(reason: &str) -> Response {
    Response::Refused {
        reason: reason.to_owned(),
    }
}
