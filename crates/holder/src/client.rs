//! A connection to a holder.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use crate::holder_process::HolderProcess;
use crate::protocol::{PROTOCOL, Request, Response};
use crate::socket::{self, Conn};
use crate::{CONNECTION_PREFIX, HolderError};

/// The state of a holder when it was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HolderInfo {
    /// Its process id.
    pub pid: u32,
    /// The process id of its server, if it has one.
    pub server: Option<u32>,
    /// Time since the last server left, if there is none.
    pub alone_for: Option<Duration>,
    /// Time without a server after which it closes the connections.
    pub abandon_after: Duration,
}

/// A descriptor that a holder keeps.
#[derive(Debug)]
pub struct HeldFd {
    /// Its name.
    pub key: String,
    /// The server's note about it.
    pub note: String,
    /// A copy of the descriptor.
    pub descriptor: OwnedFd,
}

/// A connection to the holder of a root folder.
#[derive(Debug)]
pub struct HolderClient {
    conn: Conn,
    info: HolderInfo,
    process: Option<HolderProcess>,
}

impl HolderClient {
    /// Connects to the holder of `root` as an observer; `None` if there is none.
    ///
    /// # Errors
    /// If there is one and it does not respond.
    pub fn look(root: &Path) -> Result<Option<Self>, HolderError> {
        Self::reach(root, None)
    }

    /// Does the same, and starts a holder if there is none: with `argument`, which makes this program call
    /// [`crate::become_holder`].
    ///
    /// # Errors
    /// If none can be started, or it does not respond.
    pub fn look_or_start(root: &Path, argument: &str) -> Result<Self, HolderError> {
        if let Some(found) = Self::look(root)? {
            return Ok(found);
        }
        crate::spawn::spawn(root, argument)?;
        Self::look(root)?.ok_or_else(|| HolderError::Spawn("it ended immediately".to_owned()))
    }

    /// Connects to the holder of `root` as its server; `None` if there is none.
    ///
    /// # Errors
    /// If it has a server already, or does not respond.
    pub fn serve(root: &Path, abandon_after: Duration) -> Result<Option<Self>, HolderError> {
        Self::reach(root, Some(abandon_after))
    }

    fn reach(root: &Path, as_server: Option<Duration>) -> Result<Option<Self>, HolderError> {
        let Some(conn) = socket::connect_to(root)? else {
            return Ok(None);
        };
        let hello = Request::Hello {
            protocol: PROTOCOL,
            server: as_server.is_some(),
            abandon_after: as_server.map(|limit| limit.as_secs()),
        };
        let process = HolderProcess::of(&conn);
        conn.send(&hello, None)?;
        match conn.receive()? {
            // It is about to end.
            None => Ok(None),
            Some((
                Response::Welcome {
                    pid,
                    server,
                    alone_for,
                    abandon_after,
                    ..
                },
                _,
            )) => Ok(Some(Self {
                conn,
                process: process.filter(|process| process.pid == pid),
                info: HolderInfo {
                    pid,
                    server,
                    alone_for: alone_for.map(Duration::from_millis),
                    abandon_after: Duration::from_secs(abandon_after),
                },
            })),
            Some((other, _)) => Err(unexpected(other)),
        }
    }

    /// The state of the holder when it was reached.
    #[must_use]
    pub const fn info(&self) -> &HolderInfo {
        &self.info
    }

    /// Returns copies of everything that it keeps.
    ///
    /// # Errors
    /// If the holder does not respond, or this process has too many open files.
    pub fn list(&self) -> Result<Vec<HeldFd>, HolderError> {
        self.conn.send(&Request::List, None)?;
        let mut kept = Vec::new();
        loop {
            match self.conn.receive()? {
                Some((Response::Item { key, note }, Some(descriptor))) => kept.push(HeldFd {
                    key,
                    note,
                    descriptor,
                }),
                Some((Response::Item { key, .. }, None)) => {
                    return Err(HolderError::Message(format!(
                        "it came without the descriptor of {key}: too many open files?"
                    )));
                }
                Some((Response::End, _)) => return Ok(kept),
                other => return Err(unexpected_or_closed(other)),
            }
        }
    }

    /// Counts the connections that it keeps. Receives one descriptor at a time, which needs few open files.
    ///
    /// # Errors
    /// If the holder does not respond.
    pub fn connections(&self) -> Result<usize, HolderError> {
        self.conn.send(&Request::List, None)?;
        let mut connections = 0;
        loop {
            match self.conn.receive()? {
                Some((Response::Item { key, .. }, _)) => {
                    connections += usize::from(key.starts_with(CONNECTION_PREFIX));
                }
                Some((Response::End, _)) => return Ok(connections),
                other => return Err(unexpected_or_closed(other)),
            }
        }
    }

    /// Stores a descriptor, in place of an earlier one of this key.
    ///
    /// # Errors
    /// If the holder does not respond.
    pub fn put(
        &self,
        key: &str,
        note: &str,
        descriptor: BorrowedFd<'_>,
    ) -> Result<(), HolderError> {
        let request = Request::Put {
            key: key.to_owned(),
            note: note.to_owned(),
        };
        self.request(&request, Some(descriptor)).map(drop)
    }

    /// Closes the holder's descriptor of this key. A missing one is not an error.
    ///
    /// # Errors
    /// If the holder does not respond.
    pub fn remove(&self, key: &str) -> Result<(), HolderError> {
        let request = Request::Remove {
            key: key.to_owned(),
        };
        self.request(&request, None).map(drop)
    }

    /// Closes all connections, so that requests that wait fail; returns their number.
    ///
    /// # Errors
    /// If a server serves them and `force` is not set, or the holder does not respond.
    pub fn abandon(&self, force: bool) -> Result<usize, HolderError> {
        self.request(&Request::Abandon { force }, None)
    }

    /// Ends the holder, which closes everything.
    ///
    /// # Errors
    /// If the holder does not respond.
    pub fn quit(&self) -> Result<(), HolderError> {
        self.request(&Request::Quit, None).map(drop)
    }

    /// Checks that the holder responds.
    ///
    /// # Errors
    /// If it does not.
    pub(crate) fn ping(&self) -> Result<(), HolderError> {
        // A key that nothing is stored under.
        self.remove("")
    }

    /// Closes the connection, also for copies of its descriptor. Returns the holder's process, if it is
    /// known.
    pub(crate) fn hang_up(self) -> Option<HolderProcess> {
        // Fails only if the other side has hung up.
        let _ = rustix::net::shutdown(&self.conn, rustix::net::Shutdown::Both);
        self.process
    }

    fn request(
        &self,
        request: &Request,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<usize, HolderError> {
        self.conn.send(request, descriptor)?;
        match self.conn.receive()? {
            Some((Response::Done { count }, _)) => Ok(count),
            other => Err(unexpected_or_closed(other)),
        }
    }
}

impl AsFd for HolderClient {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.conn.as_fd()
    }
}

fn unexpected_or_closed(answer: Option<(Response, Option<OwnedFd>)>) -> HolderError {
    match answer {
        Some((answer, _)) => unexpected(answer),
        None => HolderError::Talk(std::io::ErrorKind::UnexpectedEof.into()),
    }
}

fn unexpected(answer: Response) -> HolderError {
    match answer {
        Response::Refused { reason } => HolderError::Refused(reason),
        other => HolderError::Message(format!("{other:?} does not match the request")),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, recv, send};

    use super::*;

    /// Root folder and process id of a process that plays the holder.
    const ROOT: &str = "SOCI_TEST_HOLDER_ROOT";
    const PID: &str = "SOCI_TEST_HOLDER_PID";

    /// Welcomes one client with a process id, or its own, and waits until the client has gone.
    fn play_holder(root: &Path, pid: Option<u32>) {
        let listener = socket::listen_at(root).unwrap();
        let client = accept_with(&listener, SocketFlags::CLOEXEC).unwrap();
        let mut request = [0; 4096];
        recv(&client, &mut request[..], RecvFlags::empty()).unwrap();
        let welcome = Response::Welcome {
            protocol: PROTOCOL,
            pid: pid.unwrap_or(std::process::id()),
            server: None,
            alone_for: None,
            abandon_after: 600,
        };
        let welcome = serde_json::to_vec(&welcome).unwrap();
        send(&client, &welcome, SendFlags::empty()).unwrap();
        while recv(&client, &mut request[..], RecvFlags::empty()).is_ok_and(|(_, more)| more > 0) {}
    }

    /// Runs in processes of its own: the kernel names the one that listens.
    #[test]
    fn the_process_that_may_be_killed_is_the_one_that_listens_and_says_that_it_is_the_holder() {
        if let Some(root) = std::env::var_os(ROOT) {
            let pid = std::env::var(PID).ok().map(|pid| pid.parse().unwrap());
            return play_holder(Path::new(&root), pid);
        }
        // A holder in another process namespace has another number there, which may be any process here.
        for named in [None, Some(1)] {
            let root = tempfile::tempdir().unwrap();
            let mut command = Command::new(std::env::current_exe().unwrap());
            command
                .args(["--exact", "--nocapture"])
                .arg("client::tests::the_process_that_may_be_killed_is_the_one_that_listens_and_says_that_it_is_the_holder")
                .env(ROOT, root.path());
            if let Some(pid) = named {
                command.env(PID, pid.to_string());
            }
            let mut holder = command.spawn().unwrap();
            let client = loop {
                if let Some(client) = HolderClient::look(root.path()).unwrap() {
                    break client;
                }
                assert_eq!(holder.try_wait().unwrap(), None, "it does not listen");
                std::thread::yield_now();
            };
            assert_eq!(client.info().pid, named.unwrap_or(holder.id()));
            let killed = client.hang_up().map(|process| process.pid);
            let expected = named.is_none().then(|| holder.id());
            assert_eq!(killed, expected);
            assert!(holder.wait().unwrap().success());
        }
    }
}
