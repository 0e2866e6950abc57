//! What ends a server or makes it hand over: signals, and commands of its supervisor.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::control::{ControlStream, Predecessor, ServerCommand, ServerEvent};

/// Time between two reports of a start that continues.
const STARTING_PERIOD: Duration = Duration::from_secs(5);

/// Extends systemd's start time-out by a minute: layers may have to be restored from a registry.
pub(crate) const START_CONTINUES: sd_notify::NotifyState<'static> =
    sd_notify::NotifyState::ExtendTimeoutUsec(60_000_000);

/// How the daemon ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// SIGINT: unmount everything.
    Clean,
    /// SIGTERM: leave the mounts.
    LeaveMounts,
}

/// What ends a life of a server, or changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trigger {
    Stop(Stop),
    /// Release everything, and wait for the outcome.
    HandOver,
    /// The supervisor is gone: serve without.
    Orphaned,
}

/// The signal handlers and the connection to the supervisor. Once it exists no signal is lost, only
/// handled later.
pub(crate) struct Supervision {
    interrupt: Signal,
    terminate: Signal,
    supervisor: Option<ControlStream>,
}

impl Supervision {
    /// Installs the handlers. `predecessor` is `None` for a server without supervisor.
    pub(crate) fn new(predecessor: Option<Predecessor>) -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            supervisor: predecessor
                .map(|_| ControlStream::to_supervisor())
                .transpose()?,
        })
    }

    /// Waits for the next trigger. Can be cancelled and called again.
    pub(crate) async fn next(&mut self) -> Trigger {
        loop {
            let (trigger, name) = tokio::select! {
                _ = self.interrupt.recv() => (Trigger::Stop(Stop::Clean), "SIGINT"),
                _ = self.terminate.recv() => (Trigger::Stop(Stop::LeaveMounts), "SIGTERM"),
                command = command(&mut self.supervisor) => match command {
                    Some(ServerCommand::Unmount) => (Trigger::Stop(Stop::Clean), "SIGINT"),
                    Some(ServerCommand::Leave) => (Trigger::Stop(Stop::LeaveMounts), "SIGTERM"),
                    Some(ServerCommand::HandOver) => return Trigger::HandOver,
                    Some(ServerCommand::Serve | ServerCommand::Exit | ServerCommand::Hurry) => continue,
                    None => {
                        self.supervisor = None;
                        return Trigger::Orphaned;
                    }
                },
            };
            tracing::info!(signal = name, "received signal");
            return trigger;
        }
    }

    /// Returns when calls in flight are not to be waited for: at a second signal. The service manager sends
    /// signals to the supervisor and to the server, so that the supervisor, if any, counts them.
    pub(crate) async fn hurry(&mut self) {
        loop {
            if self.supervisor.is_some() {
                match command(&mut self.supervisor).await {
                    Some(ServerCommand::Hurry) => return,
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

    /// Notifies the supervisor, or without one the service manager.
    pub(crate) async fn notify(&mut self, event: ServerEvent) {
        match &mut self.supervisor {
            Some(control) => control.send(event).await,
            None => match event {
                ServerEvent::Ready => notify_systemd(sd_notify::NotifyState::Ready),
                ServerEvent::Stopping => notify_systemd(sd_notify::NotifyState::Stopping),
                ServerEvent::Starting => notify_systemd(START_CONTINUES),
                ServerEvent::Checked | ServerEvent::HandedOver => {}
            },
        }
    }

    /// Reports from time to time that the start continues, until it ends.
    pub(crate) async fn while_starting<T>(&mut self, start: impl Future<Output = T>) -> T {
        let mut start = Box::pin(start);
        loop {
            tokio::select! {
                started = &mut start => return started,
                () = tokio::time::sleep(STARTING_PERIOD) => self.notify(ServerEvent::Starting).await,
            }
        }
    }

    /// Waits for the command to serve, after the check or after a hand-over. False: to end.
    pub(crate) async fn may_serve(&mut self, without_supervisor: bool) -> bool {
        loop {
            tokio::select! {
                command = command(&mut self.supervisor) => match command {
                    Some(ServerCommand::Serve) => return true,
                    Some(ServerCommand::Exit | ServerCommand::Leave | ServerCommand::Unmount) => return false,
                    Some(ServerCommand::HandOver | ServerCommand::Hurry) => {}
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

/// Returns the supervisor's next command; `None` when it is gone. Never returns without a supervisor.
async fn command(supervisor: &mut Option<ControlStream>) -> Option<ServerCommand> {
    match supervisor {
        Some(control) => control.receive().await,
        None => std::future::pending().await,
    }
}

fn notify_systemd(state: sd_notify::NotifyState<'_>) {
    if let Err(e) = sd_notify::notify(&[state]) {
        tracing::warn!(error = %e, "cannot notify systemd");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_start_that_takes_long_extends_the_time_limit_of_systemd() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut supervisor = ControlStream::over(theirs.into()).unwrap();
        let mut supervision = Supervision {
            interrupt: signal(SignalKind::interrupt()).unwrap(),
            terminate: signal(SignalKind::terminate()).unwrap(),
            supervisor: Some(ControlStream::over(ours.into()).unwrap()),
        };
        let start = async {
            // Systemd's own limit is 90 seconds.
            for _ in 0..100 {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        supervision.while_starting(start).await;
        drop(supervision);
        let mut reports = 0;
        while let Some(event) = supervisor.receive::<ServerEvent>().await {
            assert_eq!(event, ServerEvent::Starting);
            reports += 1;
        }
        // Before the minute that each gives has passed.
        assert!(reports >= 2, "{reports}");
        assert_eq!(START_CONTINUES.to_string(), "EXTEND_TIMEOUT_USEC=60000000");
    }
}
