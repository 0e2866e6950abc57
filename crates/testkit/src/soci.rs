//! Our own daemon with a root, socket and configuration of its own.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::cli::binary;
use crate::process::{Daemon, LogLines, TestRoot};

/// How long a daemon may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(60);
const STARTED: &str = "soci-snapshotter-grpc successfully started";

/// What a daemon under test is like.
#[derive(Debug, Clone)]
pub struct SociDaemonOptions {
    /// The text of its configuration file.
    pub config: String,
    /// The value of `--log-level`.
    pub log_level: String,
    /// More environment.
    pub environment: Vec<(String, String)>,
}

impl Default for SociDaemonOptions {
    fn default() -> Self {
        Self {
            config: String::new(),
            log_level: "debug".to_owned(),
            environment: Vec::new(),
        }
    }
}

impl SociDaemonOptions {
    /// With this configuration text.
    #[must_use]
    pub fn with_config(config: &str) -> Self {
        Self {
            config: config.to_owned(),
            ..Self::default()
        }
    }
}

/// Our daemon with a root, socket and configuration of its own.
#[derive(Debug)]
pub struct SociDaemon {
    daemon: Daemon,
    socket: PathBuf,
    options: SociDaemonOptions,
    root: TestRoot,
}

impl SociDaemon {
    /// Starts the daemon and waits for its start-up line and its socket.
    ///
    /// # Errors
    /// When it does not start; the message holds the end of its log.
    pub fn start(options: SociDaemonOptions) -> Result<Self> {
        let root = TestRoot::new()?;
        let socket = root.path().join("s.sock");
        let mut daemon = Self::spawn(&root, &socket, &options)?;
        ready(&mut daemon, &socket)?;
        Ok(Self {
            daemon,
            socket,
            options,
            root,
        })
    }

    /// The socket that it listens on.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The value of `--root`.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.root.path().join("root")
    }

    /// The process.
    #[must_use]
    pub fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    /// What it logged since its last start.
    #[must_use]
    pub fn log(&self) -> &LogLines {
        self.daemon.log()
    }

    /// The lines of its log that are JSON objects.
    #[must_use]
    pub fn json_log(&self) -> Vec<serde_json::Value> {
        let lines = self.log().all();
        lines
            .iter()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// Stops it with SIGTERM: mounts stay.
    ///
    /// # Errors
    /// When it does not end.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.end(Signal::TERM)
    }

    /// Stops it with SIGINT: mounts go.
    ///
    /// # Errors
    /// When it does not end.
    pub fn interrupt(&mut self) -> Result<ExitStatus> {
        self.end(Signal::INT)
    }

    /// Kills it with SIGKILL.
    ///
    /// # Errors
    /// When it does not end.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.daemon.kill()
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// When it still runs after a while.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.daemon.wait(PATIENCE)
    }

    /// Starts it again on the same root and socket, after it ended.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_again(&mut self) -> Result<()> {
        ensure!(self.daemon.ended()?.is_some(), "the daemon still runs");
        self.daemon = Self::spawn(&self.root, &self.socket, &self.options)?;
        ready(&mut self.daemon, &self.socket)
    }

    /// Starts it again with another configuration.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_again_with(&mut self, options: SociDaemonOptions) -> Result<()> {
        self.options = options;
        self.start_again()
    }

    /// Starts a second daemon on the same root with a socket of its own, without waiting for it.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn spawn_rival(&self) -> Result<Daemon> {
        Self::spawn(
            &self.root,
            &self.root.path().join("rival.sock"),
            &self.options,
        )
    }

    fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        self.daemon.signal(signal)?;
        self.daemon.wait(PATIENCE)
    }

    fn spawn(root: &TestRoot, socket: &Path, options: &SociDaemonOptions) -> Result<Daemon> {
        let config = root.path().join("config.toml");
        std::fs::write(&config, &options.config).context("write the daemon's configuration")?;
        let program = binary("soci-snapshotter-grpc")?;
        Daemon::spawn("soci-snapshotter-grpc", root, program, |command| {
            command.arg("--address").arg(socket);
            command.arg("--root").arg(root.path().join("root"));
            command.arg("--config").arg(&config);
            command.args(["--log-level", &options.log_level]);
            command.envs(options.environment.iter().cloned());
        })
    }
}

fn ready(daemon: &mut Daemon, socket: &Path) -> Result<()> {
    daemon.wait_ready(PATIENCE, |log| {
        socket.exists() && log.all().iter().any(|line| line.contains(STARTED))
    })
}
