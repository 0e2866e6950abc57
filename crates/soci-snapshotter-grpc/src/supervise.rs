//! The supervisor, which is the process that the service manager started: it keeps a server running, and
//! replaces it.
//!
//! It does next to nothing, so that it has no reason to fail: it starts a server, passes signals on, starts
//! another one when the server ends by itself, and at SIGHUP hands over to the installed program. All state
//! of the server is with the holder and on disk.

mod child;
mod hand_over;
mod signals;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::args::Args;
use crate::control::{Predecessor, ServerEvent};
use crate::descriptor_store;
use crate::listen::PassedSockets;
use crate::own_process;
use crate::supervision::START_CONTINUES;
use child::{Program, ServerExit};
use signals::{SignalAction, Signals};

/// A server that served for this long before it crashed is started again without a pause.
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

/// Runs the daemon until a signal ends it.
///
/// # Errors
/// If no server can be started.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let passed = PassedSockets::take();
    own_process::of_supervisor();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the supervisor")?;
    runtime.block_on(supervise(args, passed))
}

async fn supervise(args: &Args, passed: PassedSockets) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new().context("cannot watch for signals")?;
    restore_stored(&args.root, passed.stored());
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
        let exit = loop {
            let action = tokio::select! {
                exit = ServerExit::of(&mut server.child) => break exit,
                event = server.control.receive::<ServerEvent>(), if server.connected => {
                    server.connected = event.is_some();
                    match event {
                        Some(ServerEvent::Ready) => {
                            has_served = true;
                            ready = Some(Instant::now());
                            notify(&[sd_notify::NotifyState::Ready]);
                        }
                        Some(ServerEvent::Starting) => notify(&[START_CONTINUES]),
                        _ => {}
                    }
                    continue;
                }
                action = signals.next() => action,
            };
            match action {
                SignalAction::End(command) => {
                    notify(&[sd_notify::NotifyState::Stopping]);
                    return Ok(server.stop(command, &mut signals).await);
                }
                SignalAction::Upgrade => {
                    let root = &args.root;
                    if let Some(next) = hand_over::upgrade(&mut server, socket.as_ref(), root).await
                    {
                        (server, program) = next;
                    }
                }
            }
        };
        // A server that cannot start has logged why; the service manager decides what follows.
        if let (false, ServerExit::Exited(code)) = (has_served, exit) {
            return Ok(ExitCode::from(code));
        }
        predecessor = exit.predecessor();
        failures = match (ready, predecessor) {
            // A kill does not predict the next server's fate.
            (_, Predecessor::Killed | Predecessor::Unknown) => 0,
            (Some(ready), _) if ready.elapsed() >= STEADY => 0,
            _ => failures.saturating_add(1),
        };
        tracing::error!(exit = %exit, "server ended by itself; starting another one");
        let pause = PAUSES.get(failures).or(PAUSES.last());
        let pause = pause.copied().unwrap_or_default();
        if let Some(command) = signals.end_within(pause).await {
            tracing::info!(command = ?command, "ending without a server; the mounts stay");
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// Passes what systemd stored to the holder, from which servers get it. Only needed if the last holder and
/// the last server both died.
fn restore_stored(root: &Path, stored: Vec<(String, OwnedFd)>) {
    match descriptor_store::restore(root, stored) {
        Ok(0) => {}
        Ok(restored) => tracing::warn!(
            restored,
            "holder lost; using the mounts that systemd stored"
        ),
        Err(error) => tracing::error!(
            error = %format!("{error:#}"),
            "cannot use the mounts that systemd stored: containers on them get errors"
        ),
    }
}

/// Notifies the service manager.
fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(state) {
        tracing::warn!(error = %e, "cannot notify systemd");
    }
}
