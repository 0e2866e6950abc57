//! From one server to the next without a gap: the new one proves itself while the old one serves, the old
//! one lets go, the new one takes up. Whatever is wrong with the new one, the old one goes on.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::child::{End, Program, Server};
use crate::control::{Ask, Predecessor, Tell};
use crate::listen::PassedSocket;
use crate::upgrade;

/// How long the new server may take to prove itself: it reads the zTOC of every mounted layer.
const TO_PROVE: Duration = Duration::from_secs(120);
/// How long the old one may take to let go: it waits for calls that run.
const TO_LET_GO: Duration = Duration::from_secs(30);
/// How long the new one may take until it serves.
const TO_SERVE: Duration = Duration::from_secs(60);
/// How long the old one may take to end when all is done.
const TO_END: Duration = Duration::from_secs(10);

/// How long after its line a server may end.
const END_FOLLOWS: Duration = Duration::from_secs(5);

/// Why there was no hand-over.
#[derive(Debug)]
struct Failure {
    why: anyhow::Error,
    /// What became of the old server.
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
            Ok(()) => write!(f, "the old server goes on: {why:#}"),
            Err(lost) => write!(
                f,
                "the old server does not serve again ({lost:#}) and is replaced when it ends: {why:#}"
            ),
        }
    }
}

/// Hands over to the program that is installed where this one was started from. `None`: there is still the
/// old server, if any.
pub(crate) async fn upgrade(
    old: &mut Server,
    socket: Option<&PassedSocket>,
    root: &Path,
) -> Option<(Server, Program)> {
    let outcome = hand_over(old, socket).await;
    let said = match &outcome {
        Ok((new, _)) => {
            tracing::info!(pid = new.pid(), "another server has taken over");
            Ok(())
        }
        Err(failure) => {
            let error = failure.to_string();
            tracing::error!(error, "the hand-over failed");
            Err(error)
        }
    };
    upgrade::report(root, said);
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
    if let Err(error) = answers(&mut new, Tell::Proved, TO_PROVE).await {
        new.kill().await;
        let why = error.context("the new program does not prove that it can take over");
        return Err(why.into());
    }
    old.line.say(Ask::HandOver).await;
    let handed_over = async {
        let let_go = answers(old, Tell::HandedOver, TO_LET_GO).await;
        let_go.context("the old server does not let go")?;
        new.line.say(Ask::Serve).await;
        let serves = answers(&mut new, Tell::Ready, TO_SERVE).await;
        serves.context("the new program does not serve")
    };
    if let Err(why) = handed_over.await {
        new.kill().await;
        old.line.say(Ask::Serve).await;
        // Whoever asked for the hand-over is told when all is as before.
        let old = answers(old, Tell::Ready, TO_SERVE).await;
        return Err(Failure { why, old });
    }
    old.line.say(Ask::Exit).await;
    if tokio::time::timeout(TO_END, End::of(&mut old.child))
        .await
        .is_err()
    {
        tracing::warn!("the old server does not end: it is killed");
        old.kill().await;
    }
    Ok((new, program))
}

/// Waits until the server says the word; what else it says is not for now.
async fn answers(server: &mut Server, word: Tell, limit: Duration) -> anyhow::Result<()> {
    let waiting = async {
        loop {
            tokio::select! {
                end = End::of(&mut server.child) => bail!("it ended ({end}); its log says why"),
                said = server.line.next::<Tell>() => match said {
                    Some(said) if said == word => return Ok(()),
                    Some(_) => {}
                    None => {
                        let end = End::of(&mut server.child);
                        // It is seen before the end that it comes with.
                        match tokio::time::timeout(END_FOLLOWS, end).await {
                            Ok(end) => bail!("it ended ({end}); its log says why"),
                            Err(_) => bail!("it closed its line; its log says why"),
                        }
                    }
                },
            }
        }
    };
    match tokio::time::timeout(limit, waiting).await {
        Ok(result) => result,
        Err(_) => bail!("it did not answer within {} s", limit.as_secs()),
    }
}

/// The path of our program. The file that we run may have been replaced since; then the kernel shows it as
/// deleted.
fn installed() -> anyhow::Result<PathBuf> {
    let path = std::fs::read_link("/proc/self/exe").context("cannot find the program that runs")?;
    let text = path.to_string_lossy();
    match text.strip_suffix(" (deleted)") {
        Some(text) if !path.exists() => Ok(text.into()),
        _ => Ok(path),
    }
}
