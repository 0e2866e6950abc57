//! The socket that containerd connects to: created at a path, or passed by systemd.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use listenfd::ListenFd;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use soci_holder::{HeldFd, Keeper};

use crate::args::DEFAULT_SOCKET;
use crate::control::PASSED_SOCKET;
use crate::descriptor_store::NAME as STORED;
use crate::holder_keys;
use crate::socket_owner::Owner;

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    /// The path of a socket to be created.
    Path(PathBuf),
    /// The socket that systemd passes (`sd_listen_fds(3)`).
    Passed,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    #[error("{0:?} is not an address: expected a path, unix://PATH or fd://")]
    Address(String),
    #[error("another process is listening on {}: {by}", path.display())]
    InUse { path: PathBuf, by: Owner },
    #[error("{} exists and is not a socket: remove it, or choose another --address", .0.display())]
    NotASocket(PathBuf),
    #[error("cannot {doing} {}: {source}", path.display())]
    Path {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "systemd passed {0} listening sockets, and exactly one is needed: \
         keep one ListenStream= in the socket unit"
    )]
    Several(usize),
    #[error(
        "systemd passed {0}, none of which is a listening unix stream socket: check ListenStream= in the socket unit"
    )]
    NoneListening(String),
    #[error("cannot use the socket that systemd passed: {0}")]
    Passed(io::Error),
}

impl ListenError {
    fn in_use(path: &Path) -> Self {
        Self::InUse {
            path: path.to_owned(),
            by: Owner::of(path),
        }
    }
}

/// A listening socket, and its name in the log.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) socket: UnixListener,
    pub(crate) address: String,
    /// The socket's file, if it is to be removed at the end.
    made: Option<PathBuf>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.made {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Address {
    pub(crate) fn parse(text: &str) -> Result<Self, ListenError> {
        if text == "fd://" {
            return Ok(Self::Passed);
        }
        let path = match text {
            "" => DEFAULT_SOCKET,
            text => text.strip_prefix("unix://").unwrap_or(text),
        };
        if path.is_empty() || path.contains("://") {
            return Err(ListenError::Address(text.to_owned()));
        }
        Ok(Self::Path(path.into()))
    }
}

/// Descriptors that the service manager passed (`sd_listen_fds(3)`). Taken before any thread runs, because
/// that changes the environment: our children must not take them for theirs.
pub(crate) struct PassedSockets {
    all: ListenFd,
    names: Vec<String>,
}

/// The listening socket that systemd passed, and its name there.
#[derive(Debug)]
pub(crate) struct PassedSocket {
    pub(crate) socket: UnixListener,
    pub(crate) name: String,
}

impl PassedSocket {
    /// Another descriptor of it.
    pub(crate) fn try_clone(&self) -> Result<Self, ListenError> {
        Ok(Self {
            socket: self.socket.try_clone().map_err(ListenError::Passed)?,
            name: self.name.clone(),
        })
    }

    /// Returns the one that the supervisor passed as standard input.
    pub(crate) fn from_supervisor() -> Result<Option<Self>, ListenError> {
        let Ok(name) = std::env::var(PASSED_SOCKET) else {
            return Ok(None);
        };
        let socket = io::stdin().as_fd().try_clone_to_owned();
        let socket = UnixListener::from(socket.map_err(ListenError::Passed)?);
        Ok(Some(Self { socket, name }))
    }
}

impl PassedSockets {
    pub(crate) fn take() -> Self {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let names = names.split(':').map(str::to_owned).collect();
        Self {
            all: ListenFd::from_env(),
            names,
        }
    }

    fn is_stored(name: &str) -> bool {
        name == "stored" || name.starts_with(STORED)
    }

    /// The descriptors that an earlier daemon stored with systemd, with their names.
    pub(crate) fn stored(&self) -> Vec<(String, OwnedFd)> {
        let Ok(ourselves) = pidfd_open(getpid(), PidfdFlags::empty()) else {
            return Vec::new();
        };
        // sd_listen_fds(3): they are numbered from 3 on.
        (3..)
            .zip(self.names.iter().take(self.all.len()))
            .filter(|(_, name)| name.starts_with(STORED))
            .filter_map(|(number, name)| {
                let flags = PidfdGetfdFlags::empty();
                let copy = pidfd_getfd(&ourselves, number, flags).ok()?;
                Some((name.clone(), copy))
            })
            .collect()
    }

    /// Returns the one listening socket among them; `None` if nothing was passed. Stored descriptors are
    /// ignored.
    pub(crate) fn listener(mut self) -> Result<Option<PassedSocket>, ListenError> {
        let mut found = Vec::new();
        let mut others = Vec::new();
        for index in 0..self.all.len() {
            let name = self.names.get(index).cloned().unwrap_or_default();
            if Self::is_stored(&name) {
                continue;
            }
            match self.all.take_unix_listener(index) {
                Ok(Some(socket)) if listens(&socket) => found.push(PassedSocket { socket, name }),
                Ok(Some(_)) => others.push(format!("{name:?} (a socket that does not listen)")),
                Ok(None) => {}
                Err(e) => others.push(format!("{name:?} ({e})")),
            }
        }
        match (found.len(), others.len()) {
            (0, 0) => Ok(None),
            (0, _) => Err(ListenError::NoneListening(others.join(", "))),
            (1, _) => Ok(found.pop()),
            (n, _) => Err(ListenError::Several(n)),
        }
    }
}

fn listens(socket: &UnixListener) -> bool {
    rustix::net::sockopt::socket_acceptconn(socket).unwrap_or(false)
}

/// Starts to listen, or reuses the socket that an earlier server listened on (`held`).
pub(crate) fn listen(
    address: &Address,
    passed: Option<PassedSocket>,
    held: Option<HeldFd>,
) -> Result<Listener, ListenError> {
    match (address, passed) {
        (Address::Path(path), _) => held_or_new(path, held),
        (Address::Passed, Some(PassedSocket { socket, name })) => {
            let path = socket
                .local_addr()
                .ok()
                .and_then(|a| a.as_pathname().map(Path::to_owned));
            let address = path.map_or(name, |path| path.display().to_string());
            socket.set_nonblocking(true).map_err(ListenError::Passed)?;
            Ok(Listener {
                socket,
                address,
                made: None,
            })
        }
        (Address::Passed, None) => {
            tracing::warn!(
                address = DEFAULT_SOCKET,
                "--address is fd:// but no socket was passed: listening on the default path"
            );
            held_or_new(Path::new(DEFAULT_SOCKET), held)
        }
    }
}

/// Identifies a socket's file: the path may have another one since.
fn file_of(path: &Path) -> Option<String> {
    let meta = path.symlink_metadata().ok()?;
    Some(format!("{}:{}:{}", meta.dev(), meta.ino(), path.display()))
}

fn held_or_new(path: &Path, held: Option<HeldFd>) -> Result<Listener, ListenError> {
    if let Some(held) = held.filter(|held| Some(&held.note) == file_of(path).as_ref()) {
        let socket = UnixListener::from(held.descriptor);
        socket.set_nonblocking(true).map_err(ListenError::Passed)?;
        return Ok(Listener {
            socket,
            address: path.display().to_string(),
            made: Some(path.to_owned()),
        });
    }
    at_path(path)
}

impl Listener {
    /// Stores the socket with the holder, so that clients wait while the server is replaced.
    ///
    /// # Errors
    /// If this process has too many open files.
    pub(crate) fn hold(&self, keeper: &Keeper) -> io::Result<()> {
        // systemd keeps the one that it passed.
        if let Some(file) = self.made.as_deref().and_then(file_of) {
            let socket = self.socket.as_fd().try_clone_to_owned()?;
            keeper.put(holder_keys::SOCKET, &file, socket);
        }
        Ok(())
    }

    /// Leaves the socket's file to the next server.
    pub(crate) fn leave(mut self) {
        self.made = None;
    }
}

/// Listens on a path; a stale socket is replaced, one that answers is not.
pub(crate) fn at_path(path: &Path) -> Result<Listener, ListenError> {
    let failed = |doing| {
        move |source| ListenError::Path {
            doing,
            path: path.to_owned(),
            source,
        }
    };
    if let Some(parent) = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)
            .map_err(failed("create the folder of"))?;
    }
    match path.symlink_metadata() {
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(ListenError::NotASocket(path.to_owned()));
        }
        Ok(_) => {
            // A socket without a listener refuses; one that accepts, or whose queue is full, has one.
            match UnixStream::connect(path) {
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path).map_err(failed("remove the stale socket"))?;
                    tracing::debug!(path = %path.display(), "removed a stale socket");
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Ok(_) | Err(_) => return Err(ListenError::in_use(path)),
            }
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed("look at")(e)),
    }
    // Created under the umask, which the server sets to 0077; the mode is the same without that.
    let socket = UnixListener::bind(path).map_err(|source| {
        if source.kind() == io::ErrorKind::AddrInUse {
            ListenError::in_use(path)
        } else {
            failed("listen on")(source)
        }
    })?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600))
        .map_err(failed("set the permissions of"))?;
    socket.set_nonblocking(true).map_err(failed("listen on"))?;
    Ok(Listener {
        socket,
        address: path.display().to_string(),
        made: Some(path.to_owned()),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Leaves the file of a socket on which no process listens.
    pub(crate) fn leave_stale_socket(path: &Path) {
        drop(UnixListener::bind(path).unwrap());
        assert!(path.exists(), "std leaves the file");
        // A program that another test starts has the socket open until its exec.
        while UnixStream::connect(path).is_ok() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    fn path(path: &Path) -> Address {
        Address::parse(path.to_str().unwrap()).unwrap()
    }

    #[test]
    fn an_address_is_a_path_a_unix_url_or_fd() {
        assert_eq!(
            Address::parse("/a/b").unwrap(),
            Address::Path("/a/b".into())
        );
        assert_eq!(
            Address::parse("unix:///a/b").unwrap(),
            Address::Path("/a/b".into())
        );
        assert_eq!(Address::parse("fd://").unwrap(), Address::Passed);
        assert_eq!(
            Address::parse("").unwrap(),
            Address::Path(DEFAULT_SOCKET.into())
        );
        for bad in ["tcp://x", "unix://", "fd://3"] {
            assert!(Address::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_missing_folder_is_made_for_root_only_and_the_socket_goes_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("new/deep/s.sock");
        let listener = listen(&path(&socket), None, None).unwrap();
        let mode = socket
            .parent()
            .unwrap()
            .metadata()
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o700);
        let mode = socket.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(UnixStream::connect(&socket).is_ok());
        drop(listener);
        assert!(!socket.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_but_never_one_that_answers() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s.sock");
        leave_stale_socket(&socket);
        let _first = listen(&path(&socket), None, None).unwrap();
        let refused = listen(&path(&socket), None, None).unwrap_err();
        assert!(matches!(refused, ListenError::InUse { .. }), "{refused}");
        assert!(
            UnixStream::connect(&socket).is_ok(),
            "the first still has it"
        );
    }

    #[test]
    fn a_kept_socket_is_used_on_as_long_as_its_file_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s.sock");
        let kept = |listener: &Listener| HeldFd {
            key: holder_keys::SOCKET.to_owned(),
            note: file_of(&socket).unwrap(),
            descriptor: listener.socket.as_fd().try_clone_to_owned().unwrap(),
        };
        let first = listen(&path(&socket), None, None).unwrap();
        let (again, stale) = (kept(&first), kept(&first));
        first.leave();
        let _waiting = UnixStream::connect(&socket).unwrap();
        let second = listen(&path(&socket), None, Some(again)).unwrap();
        assert!(second.socket.accept().is_ok(), "the client has waited");
        second.leave();
        std::fs::remove_file(&socket).unwrap();
        let third = listen(&path(&socket), None, Some(stale)).unwrap();
        let _client = UnixStream::connect(&socket).unwrap();
        assert!(third.socket.accept().is_ok(), "it is a new one");
    }

    #[test]
    fn a_file_in_the_way_is_not_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("precious");
        std::fs::write(&file, "x").unwrap();
        let refused = listen(&path(&file), None, None).unwrap_err();
        assert!(matches!(refused, ListenError::NotASocket(_)), "{refused}");
        assert_eq!(std::fs::read(&file).unwrap(), b"x");
    }
}
