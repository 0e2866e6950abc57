//! The signals of the supervisor, and what they request.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::control::ServerCommand;

/// The signal handlers, installed from the start.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

/// What a signal requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SignalAction {
    /// End with this command: [`ServerCommand::Leave`] or [`ServerCommand::Unmount`].
    End(ServerCommand),
    /// Hand over to the installed program.
    Upgrade,
}

impl Signals {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for a signal.
    pub(super) async fn next(&mut self) -> SignalAction {
        let (action, name) = tokio::select! {
            _ = self.terminate.recv() => (SignalAction::End(ServerCommand::Leave), "SIGTERM"),
            _ = self.interrupt.recv() => (SignalAction::End(ServerCommand::Unmount), "SIGINT"),
            _ = self.hang_up.recv() => (SignalAction::Upgrade, "SIGHUP"),
        };
        tracing::debug!(signal = name, "supervisor received signal");
        action
    }

    /// Waits for a signal to end.
    pub(super) async fn end(&mut self) -> ServerCommand {
        loop {
            if let SignalAction::End(command) = self.next().await {
                return command;
            }
        }
    }

    /// The same for `time` at most.
    pub(super) async fn end_within(&mut self, time: Duration) -> Option<ServerCommand> {
        tokio::time::timeout(time, self.end()).await.ok()
    }
}
