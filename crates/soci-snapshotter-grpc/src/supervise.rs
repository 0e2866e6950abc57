//! The process that the service manager knows: it keeps a server running, and replaces it.
//!
//! It does next to nothing, so that it has no reason to fail: it starts a server, passes signals on, starts
//! another one at once when the server ends by itself, and at SIGHUP hands over to the program that is
//! installed now. What the server knows is with the holder and on disk, not here.

mod child;
mod hand_over;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::Args;
use crate::control::{Ask, Predecessor, Tell};
use crate::descriptor_store;
use crate::listen::PassedSockets;
use child::{End, Program};

/// A server that serves for this long before it crashes is started again at once.
const STEADY: Duration = Duration::from_secs(2);

/// Waiting times before a server is started again that always ends soon; the last one stays.
const PAUSES: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
];

/// Signals, heard from the start on.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

/// What the outside wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    /// End: [`Ask::Leave`] or [`Ask::Unmount`].
    End(Ask),
    Upgrade,
}

/// Runs the daemon until a signal ends it.
///
/// # Errors
/// If no server can be started.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let passed = PassedSockets::take();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the supervisor")?;
    runtime.block_on(supervise(args, passed))
}

async fn supervise(args: &Args, passed: PassedSockets) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new().context("cannot watch for signals")?;
    give_to_holder(&args.root, passed.stored());
    let socket = passed.listener()?;
    let mut program = Program::running().context("cannot find the program that runs")?;
    let mut predecessor = Predecessor::Unknown;
    let mut has_served = false;
    let mut failures = 0_usize;
    loop {
        let mut ready: Option<Instant> = None;
        let mut server = program
            .start(socket.as_ref(), predecessor)
            .context("cannot start the server")?;
        let end = loop {
            let wish = tokio::select! {
                end = End::of(&mut server.child) => break end,
                word = server.line.next::<Tell>(), if server.talks => {
                    server.talks = word.is_some();
                    if word == Some(Tell::Ready) {
                        has_served = true;
                        ready = Some(Instant::now());
                        notify(&[sd_notify::NotifyState::Ready]);
                    }
                    continue;
                }
                wish = signals.next() => wish,
            };
            match wish {
                Wish::End(ask) => {
                    notify(&[sd_notify::NotifyState::Stopping]);
                    return Ok(server.stop(ask, &mut signals).await);
                }
                Wish::Upgrade => {
                    let root = &args.root;
                    if let Some(next) = hand_over::upgrade(&mut server, socket.as_ref(), root).await
                    {
                        (server, program) = next;
                    }
                }
            }
        };
        // A server that cannot start has said why; the service manager decides what then.
        if let (false, End::Exited(code)) = (has_served, end) {
            return Ok(ExitCode::from(code));
        }
        predecessor = end.predecessor();
        failures = match (ready, predecessor) {
            // Somebody killed it: that says nothing about the next one.
            (_, Predecessor::Killed | Predecessor::Unknown) => 0,
            (Some(ready), _) if ready.elapsed() >= STEADY => 0,
            _ => failures.saturating_add(1),
        };
        tracing::error!(end = %end, "the server ended by itself; starting another one");
        let pause = PAUSES.get(failures).or(PAUSES.last());
        let pause = pause.copied().unwrap_or_default();
        if let Some(ask) = signals.end_within(pause).await {
            tracing::info!(ask = ?ask, "ending without a server; the mounts stay");
            return Ok(ExitCode::SUCCESS);
        }
    }
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Wish {
        let (wish, name) = tokio::select! {
            _ = self.terminate.recv() => (Wish::End(Ask::Leave), "SIGTERM"),
            _ = self.interrupt.recv() => (Wish::End(Ask::Unmount), "SIGINT"),
            _ = self.hang_up.recv() => (Wish::Upgrade, "SIGHUP"),
        };
        tracing::debug!(signal = name, "the supervisor got a signal");
        wish
    }

    /// Waits for a wish to end.
    async fn end(&mut self) -> Ask {
        loop {
            if let Wish::End(ask) = self.next().await {
                return ask;
            }
        }
    }

    async fn end_within(&mut self, time: Duration) -> Option<Ask> {
        tokio::time::timeout(time, self.end()).await.ok()
    }
}

/// Gives what systemd stored to the holder, which a server asks for it: there is something to give only if
/// the last holder and the last server both died.
fn give_to_holder(root: &Path, stored: Vec<(String, OwnedFd)>) {
    match descriptor_store::restore(root, stored) {
        Ok(0) => {}
        Ok(restored) => tracing::warn!(
            restored,
            "the holder has died; what systemd stored is used in its place"
        ),
        Err(error) => tracing::error!(
            error = %format!("{error:#}"),
            "mounts that systemd stored cannot be used: containers on them get errors"
        ),
    }
}

/// Tells the service manager.
fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(state) {
        tracing::warn!(error = %e, "cannot notify systemd");
    }
}
