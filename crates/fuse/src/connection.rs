//! One FUSE connection: its descriptor, and the facts that a server of it needs.

use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::RwLock;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use zerocopy::IntoBytes;

use crate::abi::{self, OutHeader};
use crate::init::Negotiated;
use crate::journal::{Journal, Slot};
use crate::reply::ReplySink;
use crate::request::Request;
use crate::waiting::Waiting;

/// The content of a connection, by which a later server checks that it would show the same. Opaque to
/// this crate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentIdentity {
    /// Name of the content, for instance a layer's digest.
    pub name: String,
    /// Version of the rule that assigns the node numbers.
    pub numbering_version: u32,
    /// Checksum over the node numbers.
    pub numbering_checksum: String,
}

/// The parameters that a server needs in addition to the descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionFacts {
    /// Its mount point.
    pub mountpoint: PathBuf,
    /// The outcome of INIT.
    pub negotiated: Negotiated,
    /// Its content.
    pub content: ContentIdentity,
    /// Device number of the mount, `major:minor` as in mountinfo; `None` if it was not found
    /// there.
    pub device: Option<String>,
    /// A random number that identifies the connection in the journal, and with a holder.
    pub key: u64,
}

/// One open /dev/fuse descriptor after INIT, and its facts.
#[derive(Debug)]
pub struct Connection {
    pub(crate) device: OwnedFd,
    pub(crate) facts: ConnectionFacts,
}

impl Connection {
    /// Wraps a live connection that another process began.
    #[must_use]
    pub const fn from_parts(device: OwnedFd, facts: ConnectionFacts) -> Self {
        Self { device, facts }
    }

    /// The facts.
    #[must_use]
    pub const fn facts(&self) -> &ConnectionFacts {
        &self.facts
    }

    /// Returns another descriptor of the same open file, for a holder: the connection lives while any of
    /// them is open.
    ///
    /// # Errors
    /// If the process has too many open files.
    pub fn duplicate(&self) -> std::io::Result<OwnedFd> {
        self.device.try_clone()
    }
}

/// A connection that is being served. It can be closed while replies are outstanding, which are then
/// dropped.
#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) facts: ConnectionFacts,
    device: RwLock<Option<OwnedFd>>,
    waiting: Waiting,
    journal: Arc<Journal>,
    /// Another server served it before.
    adopted: bool,
}

impl Channel {
    pub(crate) fn new(connection: Connection, journal: Arc<Journal>, adopted: bool) -> Self {
        Self {
            facts: connection.facts,
            device: RwLock::new(Some(connection.device)),
            waiting: Waiting::default(),
            journal,
            adopted,
        }
    }

    /// Whether another server served it before, so that the kernel may wait for answers to requests which
    /// this one does not know.
    pub(crate) const fn is_adopted(&self) -> bool {
        self.adopted
    }

    /// Reads one request into a worker's slot and returns its length. EAGAIN: there is none. ENODEV:
    /// unmounted, aborted, or closed by [`Channel::close`].
    pub(crate) fn read(&self, slot: &mut Slot) -> Result<usize, Errno> {
        match self.device.read().as_ref() {
            Some(_) if soci_faults::fails("fuse-read") => Err(Errno::IO),
            Some(device) => slot.read(self.facts.key, device.as_fd()),
            None => Err(Errno::NODEV),
        }
    }

    /// Ends the slot's record of a request that was handled. False if the channel is closed: the answer may
    /// have gone nowhere, and the slot is the next server's.
    pub(crate) fn done(&self, slot: &mut Slot) -> bool {
        self.with_device(|_| slot.done()).is_some()
    }

    /// Calls `action` with the descriptor unless the channel is closed, and keeps it open until then.
    pub(crate) fn with_device<T>(&self, action: impl FnOnce(&OwnedFd) -> T) -> Option<T> {
        self.device.read().as_ref().map(action)
    }

    /// Whether answers still reach the kernel.
    pub(crate) fn is_open(&self) -> bool {
        self.device.read().is_some()
    }

    /// Takes the descriptor away. No slot is read into or cleared for this connection afterwards.
    pub(crate) fn close(&self) -> Option<OwnedFd> {
        self.device.write().take()
    }

    pub(crate) fn waiting(&self) -> &Waiting {
        &self.waiting
    }

    pub(crate) fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    /// Asks the kernel to send again what no server has answered. False if it cannot.
    pub(crate) fn resend(&self) -> bool {
        let notification = OutHeader {
            len: u32::try_from(size_of::<OutHeader>()).unwrap_or(u32::MAX),
            error: abi::NOTIFY_RESEND,
            unique: 0,
        };
        let device = self.device.read();
        let Some(device) = device.as_ref() else {
            return true;
        };
        match rustix::io::write(device, notification.as_bytes()) {
            // ENODEV: unmounted, no caller waits.
            Ok(_) | Err(Errno::NODEV) => true,
            Err(error) => {
                tracing::warn!(
                    mountpoint = %self.facts.mountpoint.display(),
                    error = %error,
                    "the kernel cannot resend FUSE requests; using the journal"
                );
                false
            }
        }
    }
}

impl ReplySink for Channel {
    fn send(&self, unique: u64, message: &[IoSlice<'_>]) {
        let device = self.device.read();
        let Some(device) = device.as_ref() else {
            return;
        };
        loop {
            match rustix::io::writev(device.as_fd(), message) {
                Err(Errno::INTR) => {}
                // ENOENT: the caller gave up. ENODEV: unmounted. No caller waits in either case.
                Ok(_) | Err(Errno::NOENT | Errno::NODEV) => return,
                Err(error) => {
                    tracing::error!(
                        mountpoint = %self.facts.mountpoint.display(),
                        unique,
                        error = %error,
                        "write to /dev/fuse failed"
                    );
                    return;
                }
            }
        }
    }

    fn defer(&self, request: &Request<'_>) {
        let can_resend = self.facts.negotiated.can_resend();
        let (key, bytes) = (self.facts.key, request.bytes);
        self.journal.defer(key, request.unique, bytes, can_resend);
        self.waiting.add(request.unique, request.pid);
    }

    fn claim(&self, unique: u64) -> bool {
        self.waiting.remove(unique)
    }

    fn reaches(&self) -> bool {
        self.is_open()
    }

    fn waits(&self, unique: u64) -> bool {
        self.waiting.caller(unique).is_some()
    }

    fn settle(&self, unique: u64) {
        // The reply to a closed channel was dropped: the next server answers.
        if self.is_open() {
            self.journal.settle(self.facts.key, unique);
        }
    }
}
