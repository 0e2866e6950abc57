//! What ends a server or has it hand over: signals, and its supervisor's word.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::control::{Ask, Line, Predecessor, Tell};

/// How the daemon ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// SIGINT: unmount everything.
    Clean,
    /// SIGTERM: leave the mounts.
    LeaveMounts,
}

/// What happens to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    Stop(Stop),
    /// Let go of everything, and wait for what comes of it.
    HandOver,
    /// The supervisor is gone.
    Orphaned,
}

/// The handlers, and the line to the supervisor. From the moment they exist a signal is never lost, only
/// answered later.
pub(crate) struct Outside {
    interrupt: Signal,
    terminate: Signal,
    supervisor: Option<Line>,
}

impl Outside {
    /// Listens from here on. `predecessor` is `None` for a server without supervisor.
    pub(crate) fn new(predecessor: Option<Predecessor>) -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            supervisor: predecessor.map(|_| Line::to_supervisor()).transpose()?,
        })
    }

    /// What happens next.
    pub(crate) async fn next(&mut self) -> Event {
        loop {
            let (event, name) = tokio::select! {
                _ = self.interrupt.recv() => (Event::Stop(Stop::Clean), "SIGINT"),
                _ = self.terminate.recv() => (Event::Stop(Stop::LeaveMounts), "SIGTERM"),
                word = hear(&mut self.supervisor) => match word {
                    Some(Ask::Unmount) => (Event::Stop(Stop::Clean), "SIGINT"),
                    Some(Ask::Leave) => (Event::Stop(Stop::LeaveMounts), "SIGTERM"),
                    Some(Ask::HandOver) => return Event::HandOver,
                    Some(Ask::Serve | Ask::Exit | Ask::Hurry) => continue,
                    None => {
                        self.supervisor = None;
                        return Event::Orphaned;
                    }
                },
            };
            tracing::info!(signal = name, "got a signal");
            return event;
        }
    }

    /// Returns when somebody does not want to wait for calls that run. The service manager sends its signal
    /// to the supervisor and to us, so that with a supervisor it is the one that counts them.
    pub(crate) async fn hurry(&mut self) {
        loop {
            if self.supervisor.is_some() {
                match hear(&mut self.supervisor).await {
                    Some(Ask::Hurry) => return,
                    Some(_) => {}
                    None => self.supervisor = None,
                }
            } else {
                tokio::select! {
                    _ = self.interrupt.recv() => return,
                    _ = self.terminate.recv() => return,
                }
            }
        }
    }

    /// Tells the supervisor, or without one the service manager.
    pub(crate) async fn tell(&mut self, word: Tell) {
        match &mut self.supervisor {
            Some(line) => line.say(word).await,
            None => match word {
                Tell::Ready => notify(sd_notify::NotifyState::Ready),
                Tell::Stopping => notify(sd_notify::NotifyState::Stopping),
                Tell::Proved | Tell::HandedOver => {}
            },
        }
    }

    /// Waits for the word to serve, after having proved itself or having handed over. False: to end.
    pub(crate) async fn may_serve(&mut self, without_supervisor: bool) -> bool {
        loop {
            tokio::select! {
                word = hear(&mut self.supervisor) => match word {
                    Some(Ask::Serve) => return true,
                    Some(Ask::Exit | Ask::Leave | Ask::Unmount) => return false,
                    Some(Ask::HandOver | Ask::Hurry) => {}
                    None => {
                        self.supervisor = None;
                        return without_supervisor;
                    }
                },
                _ = self.interrupt.recv() => return false,
                _ = self.terminate.recv() => return false,
            }
        }
    }

    pub(crate) const fn is_supervised(&self) -> bool {
        self.supervisor.is_some()
    }
}

/// The supervisor's next word; `None` when it is gone. Waits for ever where there never was one.
async fn hear(supervisor: &mut Option<Line>) -> Option<Ask> {
    match supervisor {
        Some(line) => line.next().await,
        None => std::future::pending().await,
    }
}

fn notify(state: sd_notify::NotifyState<'_>) {
    if let Err(e) = sd_notify::notify(&[state]) {
        tracing::warn!(error = %e, "cannot notify systemd");
    }
}
