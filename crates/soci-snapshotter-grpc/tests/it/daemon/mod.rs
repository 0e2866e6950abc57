//! Runs the daemon's binary and reads its log. Needs root and FUSE.

#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// Nothing here takes longer on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(180);

pub(crate) type LogLine = serde_json::Map<String, serde_json::Value>;

/// The program, without what the environment of the tests may hold for it.
pub(crate) fn program() -> Command {
    wrapped(&[])
}

/// The program, run by another one.
pub(crate) fn wrapped(by: &[&str]) -> Command {
    let binary = env!("CARGO_BIN_EXE_soci-snapshotter-grpc");
    let mut all = by.iter().copied().chain([binary]);
    let mut command = Command::new(all.next().unwrap());
    command.args(all);
    for name in ["ADDRESS", "CONFIG", "LOG_LEVEL", "ROOT"] {
        command.env_remove(format!("SOCI_SNAPSHOTTER_{name}"));
    }
    for name in [
        "NOTIFY_SOCKET",
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_FDNAMES",
        "RUST_BACKTRACE",
    ] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

pub(crate) fn output(command: &mut Command) -> Output {
    command.output().unwrap()
}

/// A folder with a root, a configuration and a socket for one daemon.
pub(crate) struct DaemonDirs {
    dir: tempfile::TempDir,
}

impl DaemonDirs {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.toml"), "").unwrap();
        Self { dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("s.sock")
    }

    pub(crate) fn write_config(&self, text: &str) {
        std::fs::write(self.path("config.toml"), text).unwrap();
    }

    /// Adds root and configuration to a command line.
    pub(crate) fn here(&self, mut command: Command) -> Command {
        command.arg("--root").arg(self.path("root"));
        command.arg("--config").arg(self.path("config.toml"));
        command
    }

    /// The whole command line of a daemon in this place.
    pub(crate) fn command(&self) -> Command {
        let mut command = self.here(program());
        command.arg("--address").arg(self.socket());
        command
    }

    pub(crate) fn start(&self) -> Daemon {
        let mut daemon = Daemon::spawn(self.command());
        daemon.wait_for("soci-snapshotter-grpc successfully started");
        daemon
    }
}

/// A running daemon; killed when dropped.
pub(crate) struct Daemon {
    child: Child,
    incoming: Receiver<String>,
    /// All lines so far.
    pub(crate) lines: Vec<LogLine>,
}

impl Daemon {
    pub(crate) fn spawn(mut command: Command) -> Self {
        command.stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().unwrap();
        let (sender, incoming) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self {
            child,
            incoming,
            lines: Vec::new(),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a log line with this message. Lines of wrappers that are not JSON are passed over.
    pub(crate) fn wait_for(&mut self, message: &str) -> LogLine {
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let Ok(text) = self.incoming.recv_timeout(left) else {
                panic!("no line {message:?} in the log: {:#?}", self.lines);
            };
            if let Some(line) = self.keep(&text)
                && line["msg"] == message
            {
                return line;
            }
        }
    }

    fn keep(&mut self, text: &str) -> Option<LogLine> {
        let line: LogLine = serde_json::from_str(text).ok()?;
        self.lines.push(line.clone());
        Some(line)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id())
            .ok()
            .and_then(Pid::from_raw)
            .unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Waits for the end and collects the rest of the log.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let end = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < end, "does not end: {:#?}", self.lines);
            std::thread::sleep(Duration::from_millis(10));
        };
        while let Ok(text) = self.incoming.recv_timeout(Duration::from_secs(5)) {
            self.keep(&text);
        }
        status
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Supervisor and server; a holder without mounts ends by itself.
        let group = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let _ = group.map(|group| kill_process_group(group, Signal::KILL));
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a daemon that must refuse to start, and returns the `error` of its one fatal line.
pub(crate) fn refusal(command: Command) -> String {
    let mut daemon = Daemon::spawn(command);
    let status = daemon.wait();
    assert_eq!(status.code(), Some(1), "{:#?}", daemon.lines);
    let fatal: Vec<_> = daemon
        .lines
        .iter()
        .filter(|line| line["level"] == "fatal")
        .collect();
    assert_eq!(fatal.len(), 1, "{:#?}", daemon.lines);
    assert_eq!(
        daemon.lines.last(),
        fatal.first().copied(),
        "the reason is the last line"
    );
    fatal[0]["error"].as_str().unwrap().to_owned()
}

/// The folder of this package.
pub(crate) fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
