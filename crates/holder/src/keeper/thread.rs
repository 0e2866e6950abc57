//! The thread that talks to the holder: it alone waits for answers, and for a new holder when the old one
//! dies.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::Child;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::oneshot;

use super::KeeperConfig;
use crate::client::{HeldFd, HolderClient, HolderInfo};
use crate::holder_process::HolderProcess;
use crate::{HolderError, spawn};

/// Time after which a holder that could not be started is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Time between two checks whether the holder responds, while there is no other request.
const PING_PERIOD: Duration = Duration::from_secs(60);

/// How long a server that is going away may still be registered with the holder.
const PREDECESSOR_LEAVES: Duration = Duration::from_secs(3);

/// A request of the handle.
pub(super) enum Command {
    Put {
        key: String,
        stored: Stored,
    },
    Remove {
        key: String,
    },
    /// Answered when all earlier requests have been carried out: true if a holder did.
    Confirm(oneshot::Sender<bool>),
    Close {
        quit: bool,
        done: oneshot::Sender<()>,
    },
}

/// A descriptor to be held, with the server's note about it.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) descriptor: OwnedFd,
    pub(super) note: String,
}

/// Why the thread stopped waiting.
enum Woken {
    /// There are requests, or it is time to look for a holder, or for no reason.
    Requested,
    /// The holder has ended.
    Ended,
    /// There was no request for a while.
    Idle,
}

/// The state of the thread.
pub(super) struct HolderThread {
    config: KeeperConfig,
    commands: Receiver<Command>,
    wake: Arc<OwnedFd>,
    /// What the handle may know of `holder` without waiting for this thread.
    info: Arc<Mutex<Option<HolderInfo>>>,
    holder: Option<HolderClient>,
    /// The process of the last holder, which did not respond.
    silent: Option<HolderProcess>,
    /// The holder, if this process started it: to be waited for.
    child: Option<Child>,
    /// Everything that is to be held, for the next holder.
    stored: BTreeMap<String, Stored>,
    /// When to look for another holder, while there is none.
    retry_at: Instant,
}

impl HolderThread {
    /// Finds or starts the holder; returns what it holds.
    pub(super) fn connect(
        config: KeeperConfig,
        commands: Receiver<Command>,
        wake: Arc<OwnedFd>,
        info: Arc<Mutex<Option<HolderInfo>>>,
    ) -> Result<(Self, Vec<HeldFd>), HolderError> {
        let mut thread = Self {
            config,
            commands,
            wake,
            info,
            holder: None,
            silent: None,
            child: None,
            stored: BTreeMap::new(),
            retry_at: Instant::now(),
        };
        let held = thread.connect_to_holder()?.list()?;
        for HeldFd {
            key,
            note,
            descriptor,
        } in &held
        {
            let stored = Stored {
                descriptor: descriptor.try_clone().map_err(HolderError::Talk)?,
                note: note.clone(),
            };
            thread.stored.insert(key.clone(), stored);
        }
        Ok((thread, held))
    }

    /// Carries out requests, and replaces the holder when it dies, until the handle closes.
    pub(super) fn run(mut self) {
        loop {
            match self.wait() {
                Woken::Ended => self.drop_holder(),
                Woken::Idle => self.ping(),
                Woken::Requested => {}
            }
            loop {
                match self.commands.try_recv() {
                    Ok(Command::Put { key, stored }) => self.put(key, stored),
                    Ok(Command::Remove { key }) => self.remove(&key),
                    Ok(Command::Confirm(done)) => {
                        // An error means that the caller does not wait any longer.
                        let _ = done.send(self.holder.is_some());
                    }
                    Ok(Command::Close { quit, done }) => {
                        self.close(quit);
                        let _ = done.send(());
                        return;
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return self.close(false),
                }
            }
            if self.holder.is_none() && Instant::now() >= self.retry_at {
                self.replace_holder();
            }
        }
    }

    /// Waits for a request, the end of the holder or the time to look for another one.
    fn wait(&self) -> Woken {
        let mut watched = vec![PollFd::new(&self.wake, PollFlags::IN)];
        let holder = self.holder.as_ref();
        watched.extend(holder.map(|holder| PollFd::new(holder, PollFlags::RDHUP)));
        let limit = match holder {
            Some(_) => Timespec::try_from(PING_PERIOD).ok(),
            None => {
                let left = self.retry_at.saturating_duration_since(Instant::now());
                // Rounded up, so that the time has come afterwards.
                Timespec::try_from(left + Duration::from_millis(1)).ok()
            }
        };
        // A signal only shortens it.
        let events = match poll(&mut watched, limit.as_ref()) {
            Ok(events) => events,
            Err(_) => return Woken::Requested,
        };
        let ended = watched.get(1).is_some_and(|fd| !fd.revents().is_empty());
        // Nothing to read means that only the holder, or the time, woke us up.
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        match (ended, events) {
            (true, _) => Woken::Ended,
            (false, 0) => Woken::Idle,
            (false, _) => Woken::Requested,
        }
    }

    fn ping(&mut self) {
        if let Some(holder) = &self.holder
            && let Err(error) = holder.ping()
        {
            tracing::warn!(error = %error, "the holder did not respond to a check");
            self.drop_holder();
        }
    }

    fn put(&mut self, key: String, stored: Stored) {
        if let Some(holder) = &self.holder
            && let Err(error) = holder.put(&key, &stored.note, stored.descriptor.as_fd())
        {
            tracing::warn!(key, error = %error, "the holder did not accept a descriptor");
            self.drop_holder();
        }
        if let Some(backup) = &self.config.backup {
            backup.put(&key, &stored.note, stored.descriptor.as_fd());
        }
        self.stored.insert(key, stored);
    }

    fn remove(&mut self, key: &str) {
        if self.stored.remove(key).is_none() {
            return;
        }
        if let Some(backup) = &self.config.backup {
            backup.remove(key);
        }
        if let Some(holder) = &self.holder
            && let Err(error) = holder.remove(key)
        {
            tracing::warn!(key, error = %error, "the holder did not close a descriptor");
            self.drop_holder();
        }
    }

    fn close(&mut self, quit: bool) {
        if let Some(holder) = self.holder.take() {
            if quit && let Err(error) = holder.quit() {
                tracing::warn!(error = %error, "the holder does not end");
            }
            drop(holder.hang_up());
        }
        *self.info.lock() = None;
        if let (true, Some(backup)) = (quit, &self.config.backup) {
            self.stored.keys().for_each(|key| backup.remove(key));
        }
        self.stored.clear();
        if quit && let Some(mut child) = self.child.take() {
            // It has confirmed that it ends.
            let _ = child.wait();
        }
    }

    /// Hangs up on a holder that is dead or does not respond. Another one is looked for after the requests
    /// that wait already: they must not wait for it.
    fn drop_holder(&mut self) {
        *self.info.lock() = None;
        if let Some(holder) = self.holder.take() {
            self.silent = holder.hang_up();
        }
        self.retry_at = Instant::now();
    }

    fn replace_holder(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Only a process that has ended is to be waited for.
            if !matches!(child.try_wait(), Ok(Some(_))) {
                self.child = Some(child);
            }
        }
        tracing::error!(
            descriptors = self.stored.len(),
            "holder lost, starting another one; mounts are still served"
        );
        let mut connected = self.connect_to_holder().map(drop);
        if connected.as_ref().is_err_and(HolderError::is_silence) && self.kill_silent_holder() {
            connected = self.connect_to_holder().map(drop);
        }
        if let Err(error) = connected {
            tracing::error!(error = %error, "no holder: mounts do not survive the daemon");
            self.retry_at = Instant::now() + RETRY_AFTER;
        }
    }

    /// Kills a holder that is alive and has not responded on two connections, each for ten seconds. This is
    /// safe because this process has copies of everything that it holds. Returns whether it has ended.
    fn kill_silent_holder(&mut self) -> bool {
        let Some(silent) = &self.silent else {
            return false;
        };
        let pid = silent.pid;
        tracing::error!(pid, "killing a holder that does not respond");
        let ended = silent.kill();
        if !ended {
            tracing::error!(
                pid,
                "a holder that does not respond cannot be killed either"
            );
        }
        ended
    }

    /// Finds or starts a holder and gives it everything that is to be held.
    fn connect_to_holder(&mut self) -> Result<&HolderClient, HolderError> {
        let holder = match become_server(&self.config)? {
            Some(holder) => holder,
            None => {
                self.child = Some(spawn::spawn(&self.config.root, self.config.argument)?);
                become_server(&self.config)?
                    .ok_or_else(|| HolderError::Spawn("it ended immediately".to_owned()))?
            }
        };
        for (key, Stored { descriptor, note }) in &self.stored {
            holder.put(key, note, descriptor.as_fd())?;
        }
        self.silent = None;
        *self.info.lock() = Some(*holder.info());
        Ok(self.holder.insert(holder))
    }
}

/// Becomes the holder's server. A server that has just gone may still be registered.
fn become_server(config: &KeeperConfig) -> Result<Option<HolderClient>, HolderError> {
    let deadline = Instant::now() + PREDECESSOR_LEAVES;
    loop {
        match HolderClient::serve(&config.root, config.abandon_after) {
            Err(HolderError::Refused(_)) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return other,
        }
    }
}
