//! From one server to the next without a gap: the new one checks that it can take over while the old one
//! serves, the old one releases everything, the new one adopts it. If the new one fails, the old one resumes.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::child::{Program, Server, ServerExit};
use crate::control::{Predecessor, ServerCommand, ServerEvent};
use crate::listen::PassedSocket;
use crate::upgrade;

/// How long the new server may take for its check: it reads the zTOC of every mounted layer.
const TO_CHECK: Duration = Duration::from_secs(120);
/// How long the old one may take to release everything: it waits for calls in flight.
const TO_RELEASE: Duration = Duration::from_secs(30);
/// How long the new one may take until it serves.
const TO_SERVE: Duration = Duration::from_secs(60);
/// How long the old one may take to end afterwards.
const TO_END: Duration = Duration::from_secs(10);

/// How long a server may take to end after it has closed its control stream.
const EXIT_FOLLOWS: Duration = Duration::from_secs(5);

/// Why there was no hand-over.
#[derive(Debug)]
struct Failure {
    why: anyhow::Error,
    /// Whether the old server serves again.
    old: anyhow::Result<()>,
}

impl From<anyhow::Error> for Failure {
    /// The old server never stopped serving.
    fn from(why: anyhow::Error) -> Self {
        Self { why, old: Ok(()) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = &self.why;
        match &self.old {
            Ok(()) => write!(f, "the old server keeps serving: {why:#}"),
            Err(lost) => write!(
                f,
                "the old server does not serve again ({lost:#}) and is replaced when it ends: {why:#}"
            ),
        }
    }
}

/// Hands over to the program that is installed where this one was started from. `None`: the old server
/// stays, if it still runs.
pub(crate) async fn upgrade(
    old: &mut Server,
    socket: Option<&PassedSocket>,
    root: &Path,
) -> Option<(Server, Program)> {
    let outcome = hand_over(old, socket).await;
    let report = match &outcome {
        Ok((new, _)) => {
            tracing::info!(pid = new.pid(), "hand-over completed");
            Ok(())
        }
        Err(failure) => {
            let error = failure.to_string();
            tracing::error!(error, "hand-over failed");
            Err(error)
        }
    };
    upgrade::report(root, report);
    outcome.ok()
}

async fn hand_over(
    old: &mut Server,
    socket: Option<&PassedSocket>,
) -> Result<(Server, Program), Failure> {
    let path = installed()?;
    let program = Program::at(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut new = program
        .start(socket, Predecessor::Serving)
        .with_context(|| format!("cannot start {}", path.display()))?;
    if let Err(error) = reports(&mut new, ServerEvent::Checked, TO_CHECK).await {
        new.kill().await;
        let why = error.context("the new program cannot take over");
        return Err(why.into());
    }
    old.control.send(ServerCommand::HandOver).await;
    let handed_over = async {
        let released = reports(old, ServerEvent::HandedOver, TO_RELEASE).await;
        released.context("the old server does not release the mounts")?;
        new.control.send(ServerCommand::Serve).await;
        let serves = reports(&mut new, ServerEvent::Ready, TO_SERVE).await;
        serves.context("the new program does not serve")
    };
    if let Err(why) = handed_over.await {
        new.kill().await;
        old.control.send(ServerCommand::Serve).await;
        // The outcome is reported once all is as before.
        let old = reports(old, ServerEvent::Ready, TO_SERVE).await;
        return Err(Failure { why, old });
    }
    old.control.send(ServerCommand::Exit).await;
    if tokio::time::timeout(TO_END, ServerExit::of(&mut old.child))
        .await
        .is_err()
    {
        tracing::warn!(
            "old server did not end within {} s; killing it",
            TO_END.as_secs()
        );
        old.kill().await;
    }
    Ok((new, program))
}

/// Waits for an event of the server; others are ignored.
async fn reports(server: &mut Server, event: ServerEvent, limit: Duration) -> anyhow::Result<()> {
    let waiting = async {
        loop {
            tokio::select! {
                exit = ServerExit::of(&mut server.child) => bail!("it ended ({exit}); see its log"),
                received = server.control.receive::<ServerEvent>() => match received {
                    Some(received) if received == event => return Ok(()),
                    Some(_) => {}
                    None => {
                        let exit = ServerExit::of(&mut server.child);
                        // The stream closes before the process has ended.
                        match tokio::time::timeout(EXIT_FOLLOWS, exit).await {
                            Ok(exit) => bail!("it ended ({exit}); see its log"),
                            Err(_) => bail!("it closed its control stream; see its log"),
                        }
                    }
                },
            }
        }
    };
    match tokio::time::timeout(limit, waiting).await {
        Ok(result) => result,
        Err(_) => bail!("no response within {} s", limit.as_secs()),
    }
}

/// The path of this program. If its file has been replaced since, the kernel shows the path as deleted.
fn installed() -> anyhow::Result<PathBuf> {
    let path = std::fs::read_link("/proc/self/exe").context("cannot find the program that runs")?;
    let text = path.to_string_lossy();
    match text.strip_suffix(" (deleted)") {
        Some(text) if !path.exists() => Ok(text.into()),
        _ => Ok(path),
    }
}
