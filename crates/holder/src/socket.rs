//! Packets with descriptors over a unix socket (`SOCK_SEQPACKET`), for root only.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind,
    connect, listen, recvmsg, sendmsg, socket_with,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::HolderError;
use crate::protocol::LARGEST;

/// Name of the socket below the daemon's root folder.
const NAME: &str = "holder.sock";

/// Limit of one send or receive: the peer responds to every request much faster.
const PATIENCE: Duration = Duration::from_secs(10);

/// The path of the socket of a root folder's holder.
pub(crate) fn path(root: &Path) -> PathBuf {
    root.join(NAME)
}

/// Returns the socket's address for a root folder of any length: `sockaddr_un` has room for 108 bytes.
/// The folder must stay open while the address is used.
fn address(root: &Path) -> Result<(File, SocketAddrUnix), HolderError> {
    let folder = File::open(root).map_err(HolderError::path("open", root))?;
    let short = format!("/proc/self/fd/{}/{NAME}", folder.as_raw_fd());
    let address = SocketAddrUnix::new(short).map_err(HolderError::talk)?;
    Ok((folder, address))
}

fn new_socket() -> Result<OwnedFd, HolderError> {
    socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(HolderError::talk)
}

/// Listens, and replaces the socket of a holder that is gone.
pub(crate) fn listen_at(root: &Path) -> Result<OwnedFd, HolderError> {
    let path = path(root);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(HolderError::path("remove", path)(error));
        }
        _ => {}
    }
    let (_folder, address) = address(root)?;
    let socket = new_socket()?;
    let at = |errno: rustix::io::Errno| HolderError::path("listen on", &path)(errno.into());
    bind(&socket, &address).map_err(at)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
        .map_err(HolderError::path("set the permissions of", &path))?;
    listen(&socket, 16).map_err(at)?;
    Ok(socket)
}

/// Connects to the holder of a root folder; `None` if there is none.
pub(crate) fn connect_to(root: &Path) -> Result<Option<Conn>, HolderError> {
    use rustix::io::Errno;
    let (_folder, address) = match address(root) {
        Ok(found) => found,
        Err(HolderError::Path { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let socket = new_socket()?;
    match connect(&socket, &address) {
        Ok(()) => Conn::new(socket).map(Some),
        Err(Errno::NOENT | Errno::CONNREFUSED) => Ok(None),
        Err(errno) => Err(HolderError::path("connect to", path(root))(errno.into())),
    }
}

/// Accepts a client that runs as root.
pub(crate) fn accept_from(listener: &OwnedFd) -> Result<Conn, HolderError> {
    let socket = accept_with(listener, SocketFlags::CLOEXEC).map_err(HolderError::talk)?;
    let user = socket_peercred(&socket).map_err(HolderError::talk)?.uid;
    if !user.is_root() {
        return Err(HolderError::NotRoot(user.as_raw()));
    }
    Conn::new(socket)
}

/// One connection between a holder and a client.
#[derive(Debug)]
pub(crate) struct Conn(OwnedFd);

impl Conn {
    fn new(socket: OwnedFd) -> Result<Self, HolderError> {
        for direction in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&socket, direction, Some(PATIENCE)).map_err(HolderError::talk)?;
        }
        Ok(Self(socket))
    }

    /// The process id of the peer.
    pub(crate) fn peer(&self) -> Option<u32> {
        let credentials = socket_peercred(&self.0).ok()?;
        credentials.pid.as_raw_nonzero().get().try_into().ok()
    }

    /// Sends one message, with a descriptor or without.
    pub(crate) fn send(
        &self,
        message: &impl Serialize,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<(), HolderError> {
        let bytes = serde_json::to_vec(message).map_err(|e| HolderError::Message(e.to_string()))?;
        if bytes.len() > LARGEST {
            return Err(HolderError::Message(format!(
                "it has {} bytes, the limit is {LARGEST}",
                bytes.len()
            )));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut extra = SendAncillaryBuffer::new(&mut space);
        let descriptors = descriptor.map(|descriptor| [descriptor]);
        if let Some(descriptors) = &descriptors
            && !extra.push(SendAncillaryMessage::ScmRights(descriptors))
        {
            return Err(HolderError::Message("no room for a descriptor".to_owned()));
        }
        let parts = [IoSlice::new(&bytes)];
        sendmsg(&self.0, &parts, &mut extra, SendFlags::NOSIGNAL).map_err(HolderError::talk)?;
        Ok(())
    }

    /// Receives one message; `None` when the peer has closed the connection.
    pub(crate) fn receive<M: DeserializeOwned>(
        &self,
    ) -> Result<Option<(M, Option<OwnedFd>)>, HolderError> {
        let mut bytes = vec![0; LARGEST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut extra = RecvAncillaryBuffer::new(&mut space);
        let length = {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            let flags = RecvFlags::CMSG_CLOEXEC;
            match recvmsg(&self.0, &mut parts, &mut extra, flags) {
                Ok(received) => received.bytes,
                Err(rustix::io::Errno::CONNRESET) => 0,
                Err(errno) => return Err(HolderError::talk(errno)),
            }
        };
        if length == 0 {
            return Ok(None);
        }
        let descriptor = extra.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        let bytes = bytes.get(..length).unwrap_or_default();
        let message =
            serde_json::from_slice(bytes).map_err(|e| HolderError::Message(e.to_string()))?;
        Ok(Some((message, descriptor)))
    }
}

impl AsFd for Conn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
