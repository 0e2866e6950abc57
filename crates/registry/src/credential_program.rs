//! One run of a program that prints credentials: Docker's helpers, the kubelet's plugins, the
//! programs of a kubeconfig.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

/// Why a program that prints credentials failed, as the rest of a sentence that names it. What it
/// printed is not quoted: it may hold a secret.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ProgramFailure {
    /// The program does not exist, or may not be run.
    #[error("cannot be started: {0}")]
    NotStarted(#[source] Arc<io::Error>),
    /// The program ran longer than allowed, and was killed.
    #[error("did not end within {} s", .0.as_secs_f32())]
    TimedOut(Duration),
    /// The program printed more than allowed, and was killed.
    #[error("printed more than {0} bytes")]
    TooMuchOutput(usize),
    /// The system did not report how the program ended.
    #[error(transparent)]
    Lost(Arc<io::Error>),
    /// The program ended with another status than 0, or by a signal.
    #[error("failed with {0}")]
    Failed(ExitStatus),
}

/// Limits of a run.
#[derive(Debug, Clone, Copy)]
pub struct ProgramLimits {
    /// Longest run.
    pub time: Duration,
    /// Largest output in bytes.
    pub output: usize,
}

/// Runs a program to its end and returns its status with what it printed. `input` is what it reads
/// from its standard input; what it writes to its standard error is dropped. A program that exceeds
/// its limits is killed, as it is when the caller no longer waits.
///
/// # Errors
/// The program cannot be started, or exceeds a limit.
pub async fn run_credential_program(
    mut command: Command,
    input: Option<&[u8]>,
    limits: ProgramLimits,
) -> Result<(ExitStatus, Vec<u8>), ProgramFailure> {
    let mut child = command
        .stdin(input.map_or_else(Stdio::null, |_| Stdio::piped()))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| ProgramFailure::NotStarted(Arc::new(error)))?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let most = u64::try_from(limits.output).unwrap_or(u64::MAX);
    let talk = async {
        let ask = async {
            if let (Some(mut stdin), Some(input)) = (stdin, input) {
                // A program that does not read its input reports that by its status.
                let _ = stdin.write_all(input).await;
            }
        };
        let mut printed = Vec::new();
        let listen = async {
            if let Some(stdout) = stdout {
                let mut stdout = stdout.take(most.saturating_add(1));
                let _ = stdout.read_to_end(&mut printed).await;
            }
        };
        tokio::join!(ask, listen);
        if printed.len() > limits.output {
            return Err(ProgramFailure::TooMuchOutput(limits.output));
        }
        match child.wait().await {
            Ok(status) => Ok((status, printed)),
            Err(error) => Err(ProgramFailure::Lost(Arc::new(error))),
        }
    };
    tokio::time::timeout(limits.time, talk)
        .await
        .unwrap_or(Err(ProgramFailure::TimedOut(limits.time)))
}
