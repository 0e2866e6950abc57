//! One container, run by runc.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use tokio::process::{Child, Command};

/// Time that a container has to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(10);
/// Name of the container.
const NAME: &str = "soci-profile";

/// A container that runs. Its state is in a folder of its own, so that its name is unique.
pub(crate) struct Runc {
    program: PathBuf,
    state: PathBuf,
    name: String,
    child: Child,
    ended: bool,
}

/// How a container ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// It ended by itself.
    Exited(ExitStatus),
    /// It was stopped.
    Stopped,
}

impl Runc {
    /// Starts the container of a bundle, with this process's input and output.
    pub(crate) fn start(program: &Path, bundle: &Path) -> anyhow::Result<Self> {
        let state = bundle.join("state");
        // Unique for cgroups, which are not in the folder.
        let name = format!("{NAME}-{}", std::process::id());
        let child = Command::new(program)
            .arg("--root")
            .arg(&state)
            .arg("run")
            .arg("--bundle")
            .arg(bundle)
            .arg(&name)
            .kill_on_drop(true)
            .spawn();
        let child = child.with_context(|| format!("cannot run {}", program.display()))?;
        Ok(Self {
            program: program.to_owned(),
            state,
            name,
            child,
            ended: false,
        })
    }

    /// Waits until the container has exited, but not longer than `time`.
    pub(crate) async fn wait(&mut self, time: Duration) -> anyhow::Result<Option<Ended>> {
        match tokio::time::timeout(time, self.child.wait()).await {
            Ok(status) => {
                self.ended = true;
                Ok(Some(Ended::Exited(
                    status.context("cannot wait for the container")?,
                )))
            }
            Err(_) => Ok(None),
        }
    }

    /// Ends the container.
    pub(crate) async fn stop(&mut self) -> anyhow::Result<Ended> {
        for signal in ["TERM", "KILL"] {
            let killed = self.command(&["kill"]).arg(signal).status().await;
            killed.with_context(|| format!("cannot run {}", self.program.display()))?;
            if self.wait(GRACE).await?.is_some() {
                break;
            }
        }
        Ok(Ended::Stopped)
    }

    /// A command of runc about the container. It fails quietly if that has ended.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--root")
            .arg(&self.state)
            .args(arguments)
            .arg(&self.name);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }
}

impl Drop for Runc {
    fn drop(&mut self) {
        if !self.ended {
            let mut delete = self.command(&["delete", "--force"]).into_std();
            let _ = delete.status();
        }
    }
}
