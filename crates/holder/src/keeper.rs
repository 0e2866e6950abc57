//! A server's end: what it gives to the holder, and a new holder when the old one dies.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

use crate::client::{Client, Facts, Kept};
use crate::{HolderError, spawn};

/// How long until a holder that could not be started is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// How long a server that is going away may still count as one.
const PREDECESSOR_GOES: Duration = Duration::from_secs(3);

/// Another place that keeps what the holder keeps, should the holder die together with its server.
pub trait SecondKeeper: std::fmt::Debug + Send + Sync {
    /// Keep this too.
    fn put(&self, key: &str, note: &str, descriptor: BorrowedFd<'_>);
    /// Do not keep this any more.
    fn remove(&self, key: &str);
}

/// How a holder is used.
#[derive(Debug, Clone)]
pub struct KeeperConfig {
    /// The root folder of the daemon; it exists.
    pub root: PathBuf,
    /// The argument with which this program calls [`crate::become_holder`].
    pub argument: &'static str,
    /// How long connections may be without a server before the holder closes them.
    pub abandon_after: Duration,
    /// Another place, if there is one.
    pub second: Option<Arc<dyn SecondKeeper>>,
}

/// Keeps descriptors with a holder, and with the next one should it die.
#[derive(Debug)]
pub struct Keeper {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: KeeperConfig,
    state: Mutex<State>,
    /// Ends the thread that watches the holder.
    stop: OwnedFd,
}

#[derive(Debug, Default)]
struct State {
    holder: Option<Client>,
    /// The holder, if this process started it: to be waited for.
    child: Option<Child>,
    /// Everything that is to be kept.
    kept: BTreeMap<String, (OwnedFd, String)>,
    closed: bool,
}

impl Keeper {
    /// Becomes the server of the root folder's holder, which is started if there is none, and returns
    /// what it has kept for us.
    ///
    /// # Errors
    /// If there is a server already, or no holder can be started.
    pub fn open(config: KeeperConfig) -> Result<(Arc<Self>, Vec<Kept>), HolderError> {
        let mut state = State::default();
        state.reach(&config)?;
        let items = match &state.holder {
            Some(holder) => holder.list()?,
            None => Vec::new(),
        };
        for item in &items {
            let copy = item.descriptor.try_clone().map_err(HolderError::Talk)?;
            state
                .kept
                .insert(item.key.clone(), (copy, item.note.clone()));
        }
        let shared = Arc::new(Shared {
            config,
            state: Mutex::new(state),
            stop: eventfd(0, EventfdFlags::CLOEXEC).map_err(HolderError::talk)?,
        });
        let watching = shared.clone();
        std::thread::Builder::new()
            .name("holder".to_owned())
            .spawn(move || watching.watch())
            .map_err(HolderError::Talk)?;
        Ok((Arc::new(Self { shared }), items))
    }

    /// What the holder said of itself; `None` while there is none.
    #[must_use]
    pub fn facts(&self) -> Option<Facts> {
        let state = self.shared.state.lock();
        state.holder.as_ref().map(|holder| *holder.facts())
    }

    /// Has a descriptor kept, in place of an earlier one of this key. Without a holder it is kept from the
    /// moment on that there is one again.
    ///
    /// # Errors
    /// If this process has too many open files.
    pub fn put(&self, key: &str, note: &str, descriptor: BorrowedFd<'_>) -> std::io::Result<()> {
        let copy = descriptor.try_clone_to_owned()?;
        let mut state = self.shared.state.lock();
        if let Some(holder) = &state.holder
            && let Err(error) = holder.put(key, note, descriptor)
        {
            tracing::warn!(key, error = %error, "the holder did not take a descriptor");
            state.give_up_holder();
        }
        state.kept.insert(key.to_owned(), (copy, note.to_owned()));
        if let Some(second) = &self.shared.config.second {
            second.put(key, note, descriptor);
        }
        Ok(())
    }

    /// Has a descriptor closed.
    pub fn remove(&self, key: &str) {
        let mut state = self.shared.state.lock();
        if state.kept.remove(key).is_none() {
            return;
        }
        if let Some(second) = &self.shared.config.second {
            second.remove(key);
        }
        if let Some(holder) = &state.holder
            && let Err(error) = holder.remove(key)
        {
            tracing::warn!(key, error = %error, "the holder did not close a descriptor");
            state.give_up_holder();
        }
    }

    /// Stops being the server; the holder keeps what it has.
    pub fn leave(&self) {
        self.close(false);
    }

    /// Ends the holder, and with it everything that nobody else has open.
    pub fn quit(&self) {
        self.close(true);
    }

    fn close(&self, quit: bool) {
        let mut state = self.shared.state.lock();
        state.closed = true;
        if let Some(holder) = state.holder.take() {
            if quit && let Err(error) = holder.quit() {
                tracing::warn!(error = %error, "the holder does not end");
            }
            holder.hang_up();
        }
        if let (true, Some(second)) = (quit, &self.shared.config.second) {
            state.kept.keys().for_each(|key| second.remove(key));
        }
        state.kept.clear();
        if quit && let Some(mut child) = state.child.take() {
            // It has said that it ends.
            let _ = child.wait();
        }
        let _ = rustix::io::write(&self.shared.stop, &1_u64.to_ne_bytes());
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.leave();
    }
}

impl State {
    /// Finds or starts a holder and gives it everything that is to be kept.
    fn reach(&mut self, config: &KeeperConfig) -> Result<(), HolderError> {
        let holder = match serve_next(config)? {
            Some(holder) => holder,
            None => {
                self.child = Some(spawn::spawn(&config.root, config.argument)?);
                serve_next(config)?
                    .ok_or_else(|| HolderError::Spawn("it ended at once".to_owned()))?
            }
        };
        for (key, (descriptor, note)) in &self.kept {
            holder.put(key, note, descriptor.as_fd())?;
        }
        self.holder = Some(holder);
        Ok(())
    }
}

impl State {
    /// Drops a holder that does not answer. The watching thread sees it and finds another one.
    fn give_up_holder(&mut self) {
        if let Some(holder) = self.holder.take() {
            holder.hang_up();
        }
    }
}

/// Becomes the holder's server. A server that has just gone may not have been missed yet.
fn serve_next(config: &KeeperConfig) -> Result<Option<Client>, HolderError> {
    let deadline = Instant::now() + PREDECESSOR_GOES;
    loop {
        match Client::serve(&config.root, config.abandon_after) {
            Err(HolderError::Refused(_)) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return other,
        }
    }
}

impl Shared {
    /// Waits for the holder's end, and sees to another one. Ends with the keeper.
    fn watch(&self) {
        loop {
            let line = {
                let state = self.state.lock();
                if state.closed {
                    return;
                }
                let line = state
                    .holder
                    .as_ref()
                    .map(|h| h.as_fd().try_clone_to_owned());
                line.and_then(Result::ok)
            };
            match line {
                Some(line) => self.wait_for_end(&line),
                None => self.wait_a_while(),
            }
            let mut state = self.state.lock();
            if state.closed {
                return;
            }
            if let Some(mut child) = state.child.take() {
                // Only a process that has ended is to be waited for.
                if !matches!(child.try_wait(), Ok(Some(_))) {
                    state.child = Some(child);
                }
            }
            state.holder = None;
            tracing::error!(
                kept = state.kept.len(),
                "the holder is gone; starting another one, while the mounts go on being served"
            );
            if let Err(error) = state.reach(&self.config) {
                tracing::error!(error = %error, "there is no holder: mounts do not survive the daemon");
            }
        }
    }

    /// Returns when the holder has closed the line, or the keeper is closed.
    fn wait_for_end(&self, line: &OwnedFd) {
        let mut watched = [
            PollFd::new(line, PollFlags::RDHUP),
            PollFd::new(&self.stop, PollFlags::IN),
        ];
        while let Err(Errno::INTR) = poll(&mut watched, None) {}
    }

    fn wait_a_while(&self) {
        let mut watched = [PollFd::new(&self.stop, PollFlags::IN)];
        let limit = rustix::event::Timespec::try_from(TRY_AGAIN).ok();
        // A signal only shortens it.
        let _ = poll(&mut watched, limit.as_ref());
    }
}
