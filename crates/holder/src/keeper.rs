//! A server's handle on its holder. Calls return immediately: a thread of its own does the talking.

mod thread;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::oneshot;

use crate::HolderError;
use crate::client::{HeldFd, HolderInfo};
use thread::{Command, HolderThread, Stored};

/// Longest wait of a caller for the holder's confirmation. It answers within a millisecond unless it is
/// being replaced, or hangs.
const CONFIRMATION: Duration = Duration::from_secs(1);

/// A second store of descriptors, for the case that the holder dies together with its server.
pub trait BackupStore: std::fmt::Debug + Send + Sync {
    /// Stores a descriptor, in place of an earlier one of this key.
    fn put(&self, key: &str, note: &str, descriptor: std::os::fd::BorrowedFd<'_>);
    /// Removes a descriptor.
    fn remove(&self, key: &str);
}

/// How a holder is reached and used.
#[derive(Debug, Clone)]
pub struct KeeperConfig {
    /// The root folder of the daemon; it exists.
    pub root: PathBuf,
    /// The argument with which this program calls [`crate::become_holder`].
    pub argument: &'static str,
    /// How long connections may be without a server before the holder closes them.
    pub abandon_after: Duration,
    /// The second store, if there is one.
    pub backup: Option<Arc<dyn BackupStore>>,
}

/// A server's handle on its holder: stores descriptors there, and with the next holder should it die.
///
/// Requests are carried out in the order in which they were made, by one thread. No call waits for the
/// holder except [`Keeper::confirm`] and [`Keeper::leave`] or [`Keeper::quit`], which are asynchronous.
#[derive(Debug)]
pub struct Keeper {
    commands: Sender<Command>,
    /// Wakes the thread up.
    wake: Arc<OwnedFd>,
    /// The holder in use; `None` while there is none.
    info: Arc<Mutex<Option<HolderInfo>>>,
}

impl Keeper {
    /// Becomes the server of the root folder's holder, which is started if there is none, and returns
    /// what it holds. Blocks until the holder has answered.
    ///
    /// # Errors
    /// If there is a server already, or no holder can be started.
    pub fn open(config: KeeperConfig) -> Result<(Arc<Self>, Vec<HeldFd>), HolderError> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let wake = Arc::new(eventfd(0, flags).map_err(HolderError::talk)?);
        let info = Arc::default();
        let (commands, queue) = channel();
        let (thread, held) = HolderThread::connect(config, queue, wake.clone(), Arc::clone(&info))?;
        std::thread::Builder::new()
            .name("holder".to_owned())
            .spawn(move || thread.run())
            .map_err(HolderError::Talk)?;
        let keeper = Self {
            commands,
            wake,
            info,
        };
        Ok((Arc::new(keeper), held))
    }

    /// The holder in use; `None` while there is none.
    #[must_use]
    pub fn holder(&self) -> Option<HolderInfo> {
        *self.info.lock()
    }

    /// Stores a descriptor with the holder, in place of an earlier one of this key. While there is no
    /// holder it is stored as soon as there is one.
    pub fn put(&self, key: &str, note: &str, descriptor: OwnedFd) {
        self.send(Command::Put {
            key: key.to_owned(),
            stored: Stored {
                descriptor,
                note: note.to_owned(),
            },
        });
    }

    /// Closes the holder's descriptor of this key.
    pub fn remove(&self, key: &str) {
        self.send(Command::Remove {
            key: key.to_owned(),
        });
    }

    /// Waits until the holder has carried out every earlier request, for a second at most; not at all while
    /// there is no holder. Returns whether it has.
    pub async fn confirm(&self) -> bool {
        if self.holder().is_none() {
            return false;
        }
        let (done, confirmed) = oneshot::channel();
        self.send(Command::Confirm(done));
        match tokio::time::timeout(CONFIRMATION, confirmed).await {
            Ok(confirmed) => confirmed.unwrap_or(false),
            Err(_) => {
                tracing::warn!("the holder does not respond; continuing without its confirmation");
                false
            }
        }
    }

    /// Stops being the server, after all earlier requests; the holder keeps what it has.
    pub async fn leave(&self) {
        self.close(false).await;
    }

    /// Ends the holder, after all earlier requests, and with it the connections that no other process
    /// has open.
    pub async fn quit(&self) {
        self.close(true).await;
    }

    async fn close(&self, quit: bool) {
        let (done, closed) = oneshot::channel();
        self.send(Command::Close { quit, done });
        // An error means that the thread has ended already.
        let _ = closed.await;
    }

    fn send(&self, command: Command) {
        // Fails only after `leave` or `quit`, when nothing is to be stored any more.
        let _ = self.commands.send(command);
        self.wake();
    }

    fn wake(&self) {
        // Fails only if the counter is full; then the thread is about to wake up anyway.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

impl Drop for Keeper {
    /// Leaves without waiting for the thread, which ends once no sender is left.
    fn drop(&mut self) {
        let (done, _) = oneshot::channel();
        self.send(Command::Close { quit: false, done });
    }
}
