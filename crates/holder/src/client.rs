//! One conversation with a holder.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use crate::protocol::{PROTOCOL, Request, Response};
use crate::socket::{self, Conn};
use crate::{CONNECTION_PREFIX, HolderError};

/// What a holder says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HolderInfo {
    /// Its process id.
    pub pid: u32,
    /// The process id of its server, if it has one.
    pub server: Option<u32>,
    /// For how long it has had none.
    pub alone_for: Option<Duration>,
    /// After which time alone it closes the connections.
    pub abandon_after: Duration,
}

/// A descriptor that a holder keeps.
#[derive(Debug)]
pub struct HeldFd {
    /// Its name.
    pub key: String,
    /// What a server noted about it.
    pub note: String,
    /// A copy of it.
    pub descriptor: OwnedFd,
}

/// A conversation with the holder of a root folder.
#[derive(Debug)]
pub struct Client {
    conn: Conn,
    info: HolderInfo,
}

impl Client {
    /// Reaches the holder of `root` to look at what it has; `None` if there is none.
    ///
    /// # Errors
    /// If there is one and it does not answer.
    pub fn look(root: &Path) -> Result<Option<Self>, HolderError> {
        Self::reach(root, None)
    }

    /// The same; a holder is started if there is none, with `argument`, which makes this program call
    /// [`crate::become_holder`].
    ///
    /// # Errors
    /// If none can be started, or it does not answer.
    pub fn look_or_start(root: &Path, argument: &str) -> Result<Self, HolderError> {
        if let Some(found) = Self::look(root)? {
            return Ok(found);
        }
        crate::spawn::spawn(root, argument)?;
        Self::look(root)?.ok_or_else(|| HolderError::Spawn("it ended at once".to_owned()))
    }

    /// Reaches the holder of `root` as its server; `None` if there is none.
    ///
    /// # Errors
    /// If it has a server already, or does not answer.
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
        conn.send(&hello, None)?;
        match conn.receive()? {
            // It is just going away.
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

    /// What it said of itself when it was reached.
    #[must_use]
    pub const fn info(&self) -> &HolderInfo {
        &self.info
    }

    /// Copies of everything that it keeps.
    ///
    /// # Errors
    /// If the holder does not answer, or this process has too many open files.
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
                        "the descriptor of {key} did not arrive: too many open files?"
                    )));
                }
                Some((Response::End, _)) => return Ok(kept),
                other => return Err(answered(other)),
            }
        }
    }

    /// How many connections it keeps. One descriptor at a time is received, so that few open files do.
    ///
    /// # Errors
    /// If the holder does not answer.
    pub fn connections(&self) -> Result<usize, HolderError> {
        self.conn.send(&Request::List, None)?;
        let mut connections = 0;
        loop {
            match self.conn.receive()? {
                Some((Response::Item { key, .. }, _)) => {
                    connections += usize::from(key.starts_with(CONNECTION_PREFIX));
                }
                Some((Response::End, _)) => return Ok(connections),
                other => return Err(answered(other)),
            }
        }
    }

    /// Has it keep a descriptor, in place of an earlier one of this key.
    ///
    /// # Errors
    /// If the holder does not answer.
    pub fn put(
        &self,
        key: &str,
        note: &str,
        descriptor: BorrowedFd<'_>,
    ) -> Result<(), HolderError> {
        let ask = Request::Put {
            key: key.to_owned(),
            note: note.to_owned(),
        };
        self.ask(&ask, Some(descriptor)).map(drop)
    }

    /// Has it close the descriptor of this key. One that it does not have is no error.
    ///
    /// # Errors
    /// If the holder does not answer.
    pub fn remove(&self, key: &str) -> Result<(), HolderError> {
        let ask = Request::Remove {
            key: key.to_owned(),
        };
        self.ask(&ask, None).map(drop)
    }

    /// Has it close all connections at once, so that whoever waits for them gets an error; how many
    /// there were.
    ///
    /// # Errors
    /// If a server serves them and `force` is not set, or the holder does not answer.
    pub fn abandon(&self, force: bool) -> Result<usize, HolderError> {
        self.ask(&Request::Abandon { force }, None)
    }

    /// Has it close everything and end.
    ///
    /// # Errors
    /// If the holder does not answer.
    pub fn quit(&self) -> Result<(), HolderError> {
        self.ask(&Request::Quit, None).map(drop)
    }

    /// Ends the conversation, also for copies of this client's descriptor.
    pub(crate) fn hang_up(&self) {
        // Fails only if the other side has hung up.
        let _ = rustix::net::shutdown(&self.conn, rustix::net::Shutdown::Both);
    }

    fn ask(&self, ask: &Request, descriptor: Option<BorrowedFd<'_>>) -> Result<usize, HolderError> {
        self.conn.send(ask, descriptor)?;
        match self.conn.receive()? {
            Some((Response::Done { count }, _)) => Ok(count),
            other => Err(answered(other)),
        }
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.conn.as_fd()
    }
}

fn answered(answer: Option<(Response, Option<OwnedFd>)>) -> HolderError {
    match answer {
        Some((answer, _)) => unexpected(answer),
        None => HolderError::Talk(std::io::ErrorKind::UnexpectedEof.into()),
    }
}

fn unexpected(answer: Response) -> HolderError {
    match answer {
        Response::Refused { reason } => HolderError::Refused(reason),
        other => HolderError::Message(format!("{other:?} does not answer what was asked")),
    }
}
