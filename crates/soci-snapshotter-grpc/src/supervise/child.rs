//! One server process: starting, watching and ending it.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::{Child, Command};

use super::signals::Signals;
use crate::args::SERVER_ARGUMENT;
use crate::control::{ControlStream, PASSED_SOCKET, PREDECESSOR, Predecessor, ServerCommand};
use crate::listen::PassedSocket;

/// How long a server may take from the signal to its end. systemd kills after 90 s by default.
const LAST: Duration = Duration::from_secs(60);

/// Signal number of SIGKILL.
const SIGKILL: i32 = 9;

/// A program file, held open: the same file is started again, whatever is installed in its place since.
#[derive(Debug)]
pub(crate) struct Program(File);

impl Program {
    /// Opens the one that this process runs.
    pub(crate) fn running() -> io::Result<Self> {
        File::open("/proc/self/exe").map(Self)
    }

    /// Opens the one that is installed at a path.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        File::open(path).map(Self)
    }

    /// Starts a server with this process's command line.
    pub(crate) fn start(
        &self,
        socket: Option<&PassedSocket>,
        predecessor: Predecessor,
    ) -> io::Result<Server> {
        let (ours, theirs) = UnixStream::pair()?;
        // Opened again, because it is closed for our children like every descriptor.
        let program = format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd());
        let mut command = Command::new(program);
        let mut arguments = std::env::args_os();
        command.arg0(
            arguments
                .next()
                .unwrap_or_else(|| "soci-snapshotter-grpc".into()),
        );
        command.args(arguments).arg(SERVER_ARGUMENT);
        command.env(PREDECESSOR, predecessor.as_str());
        // Only the supervisor notifies systemd.
        match socket {
            Some(socket) => {
                let passed = socket.socket.as_fd().try_clone_to_owned()?;
                command.env(PASSED_SOCKET, &socket.name);
                command.stdin(Stdio::from(passed));
            }
            None => {
                command.env_remove(PASSED_SOCKET);
                command.stdin(Stdio::null());
            }
        }
        command.stdout(Stdio::from(OwnedFd::from(theirs)));
        let child = command.spawn()?;
        Ok(Server {
            child,
            control: ControlStream::over(ours.into())?,
            connected: true,
        })
    }
}

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ServerExit {
    Exited(u8),
    /// This signal ended it.
    Signal(i32),
    Unknown,
}

impl ServerExit {
    /// Waits for the end of a process. Can be given up and called again.
    pub(crate) async fn of(child: &mut Child) -> Self {
        let status: io::Result<ExitStatus> = child.wait().await;
        let Ok(status) = status else {
            return Self::Unknown;
        };
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Exited(u8::try_from(code).unwrap_or(1)),
            (None, Some(signal)) => Self::Signal(signal),
            (None, None) => Self::Unknown,
        }
    }

    /// How the next server has to regard it.
    pub(crate) fn predecessor(self) -> Predecessor {
        match self {
            Self::Exited(0) => Predecessor::Unknown,
            Self::Signal(SIGKILL) | Self::Unknown => Predecessor::Killed,
            Self::Exited(_) | Self::Signal(_) => Predecessor::Crashed,
        }
    }
}

impl fmt::Display for ServerExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) control: ControlStream,
    /// Its end of the control stream is open.
    pub(crate) connected: bool,
}

impl Server {
    /// Its process id, while it lives.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Kills it and waits for its end.
    pub(crate) async fn kill(&mut self) {
        // It may have ended already.
        let _ = self.child.kill().await;
    }

    /// Ends it and waits for that; a second signal makes it hurry. Returns the exit code of this process.
    pub(crate) async fn stop(&mut self, command: ServerCommand, signals: &mut Signals) -> ExitCode {
        self.control.send(command).await;
        let deadline = tokio::time::sleep(LAST);
        tokio::pin!(deadline);
        let exit = loop {
            tokio::select! {
                exit = ServerExit::of(&mut self.child) => break exit,
                _ = signals.end() => self.control.send(ServerCommand::Hurry).await,
                () = &mut deadline => {
                    tracing::error!("server did not end within {} s; killing it", LAST.as_secs());
                    self.kill().await;
                    return ExitCode::FAILURE;
                }
            }
        };
        match exit {
            ServerExit::Exited(code) => ExitCode::from(code),
            ServerExit::Signal(_) | ServerExit::Unknown => {
                tracing::error!(exit = %exit, "server did not exit cleanly");
                ExitCode::FAILURE
            }
        }
    }
}
