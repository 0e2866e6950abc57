//! The two ways to end the daemon: SIGINT takes the mounts down, SIGTERM leaves them.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Which signal ended the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// SIGINT: unmount everything.
    Clean,
    /// SIGTERM: leave the mounts to the next start.
    LeaveMounts,
}

/// The handlers. From the moment they exist a signal is never lost, only answered later.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    pub(crate) async fn next(&mut self) -> Stop {
        let stop = tokio::select! {
            _ = self.interrupt.recv() => Stop::Clean,
            _ = self.terminate.recv() => Stop::LeaveMounts,
        };
        let name = match stop {
            Stop::Clean => "SIGINT",
            Stop::LeaveMounts => "SIGTERM",
        };
        tracing::info!(signal = name, "got a signal");
        stop
    }
}
