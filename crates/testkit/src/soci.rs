//! Our own daemon with a root, socket and configuration of its own.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::cli::binary;
use crate::process::{Daemon, LogLines, TestRoot};

/// How long a daemon may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(180);
const STARTED: &str = "soci-snapshotter-grpc successfully started";
/// Logged before [`STARTED`] by a daemon that could not mount all layers of its predecessor within ten seconds.
const RESTORING: &str = "lazy snapshots of an earlier run are still being restored";
const RESTORED: &str = "restored the lazy snapshots of an earlier run";

/// What a daemon under test is like.
#[derive(Debug, Clone)]
pub struct SociDaemonOptions {
    /// The text of its configuration file.
    pub config: String,
    /// The socket of the containerd that uses the daemon. Without one, layers are used although no
    /// image store vouches for them, unless `config` says otherwise.
    pub containerd: Option<PathBuf>,
    /// The value of `--log-level`.
    pub log_level: String,
    /// More environment.
    pub environment: Vec<(String, String)>,
    /// The program, if it is not the one that was built.
    pub program: Option<PathBuf>,
    /// Start a server without the supervisor, which would start another one when it dies.
    pub alone: bool,
    /// Give the root folder a file system of its own with this many bytes.
    pub root_size: Option<u64>,
}

impl Default for SociDaemonOptions {
    fn default() -> Self {
        Self {
            config: String::new(),
            containerd: None,
            log_level: "debug".to_owned(),
            environment: Vec::new(),
            program: None,
            alone: false,
            root_size: None,
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

    /// The text of the configuration file: `config`, and how the image store is found. On the
    /// machine's disk, layers are stored and filled however full that disk is.
    fn config_text(&self) -> String {
        let (table, key, value) = match &self.containerd {
            Some(socket) => {
                let socket = socket.display().to_string();
                ("content_store", "containerd_address", format!("{socket:?}"))
            }
            None => ("trust", "without_image_store", "\"allow\"".to_owned()),
        };
        let text = with_key(&self.config, table, key, &value);
        match self.root_size {
            Some(_) => text,
            None => with_key(&text, "layer_store", "min_free_percent", "0"),
        }
    }
}

/// A configuration with one more key, unless its table has that key.
#[must_use]
pub fn with_key(config: &str, table: &str, key: &str, value: &str) -> String {
    let header = format!("[{table}]\n");
    let Some((before, after)) = config.split_once(&header) else {
        return format!("{config}\n{header}{key} = {value}\n");
    };
    let own = after.split("\n[").next().unwrap_or_default();
    if own.contains(key) {
        return config.to_owned();
    }
    format!("{before}{header}{key} = {value}\n{after}")
}

/// Where the daemon's program is that was built.
///
/// # Errors
/// When it is not there.
pub fn daemon_program() -> Result<PathBuf> {
    binary("soci-snapshotter-grpc")
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
        if let Some(size) = options.root_size {
            mount_small(&root.dir("root")?, size)?;
        }
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

    /// Its configuration file, written at each start.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.root.path().join("config.toml")
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

    /// The process that serves, below the one that was started. It changes with each restart.
    ///
    /// # Errors
    /// When none serves now.
    pub fn server_pid(&self) -> Result<u32> {
        let path = self.root().join("daemon.lock");
        let text = std::fs::read_to_string(&path).context("read the daemon's lock")?;
        let mut numbers = text.split_whitespace();
        let server = numbers
            .nth(1)
            .context("the lock names no server")?
            .parse()?;
        ensure!(alive(server), "the server {server} is gone");
        Ok(server)
    }

    /// The process that holds the mounts.
    ///
    /// # Errors
    /// When there is none.
    pub fn holder_pid(&self) -> Result<u32> {
        let found = crate::process::processes_below(self.root.path())
            .into_iter()
            .find(|pid| {
                let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
                name.is_ok_and(|name| name.trim() == "soci-holder")
            });
        let pid = found.context("there is no holder")?;
        Ok(u32::try_from(pid)?)
    }

    /// Kills the serving process alone with a signal; another one takes its place. Returns its number.
    ///
    /// # Errors
    /// When none serves now.
    pub fn signal_server(&self, signal: Signal) -> Result<u32> {
        let pid = self.server_pid()?;
        signal_process(pid, signal)?;
        Ok(pid)
    }

    /// Resident memory of all its processes in bytes.
    ///
    /// # Errors
    /// When one of them is gone.
    pub fn memory(&self) -> Result<u64> {
        self.sum("VmRSS:")
    }

    /// The sum of the peaks of its processes in bytes, each since its start.
    ///
    /// # Errors
    /// When one of them is gone.
    pub fn peak_memory(&self) -> Result<u64> {
        self.sum("VmHWM:")
    }

    /// The anonymous memory of its processes in bytes: what is neither file nor shared.
    ///
    /// # Errors
    /// When one of them is gone.
    pub fn anonymous_memory(&self) -> Result<u64> {
        self.sum("RssAnon:")
    }

    fn sum(&self, key: &str) -> Result<u64> {
        let processes = [self.daemon.pid(), self.server_pid()?, self.holder_pid()?];
        let memory = processes
            .iter()
            .map(|pid| crate::process::status_bytes(*pid, key));
        memory.sum()
    }

    /// Kills the holder with SIGKILL.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill_holder(&self) -> Result<u32> {
        let pid = self.holder_pid()?;
        signal_process(pid, Signal::KILL)?;
        Ok(pid)
    }

    /// Suspends the holder: it holds its sockets and answers nothing.
    ///
    /// # Errors
    /// When there is none.
    pub fn suspend_holder(&self) -> Result<u32> {
        let pid = self.holder_pid()?;
        signal_process(pid, Signal::STOP)?;
        Ok(pid)
    }

    /// Kills the process that was started, and not the server below it.
    ///
    /// # Errors
    /// When it does not end.
    pub fn kill_supervisor(&mut self) -> Result<ExitStatus> {
        self.daemon.signal(Signal::KILL)?;
        self.daemon.wait(PATIENCE)
    }

    /// Waits until another server than `before` has the root folder; it may still be starting.
    ///
    /// # Errors
    /// When none does.
    pub fn wait_for_successor(&self, before: u32) -> Result<u32> {
        self.wait_for_another("server", before, || self.server_pid())
    }

    /// Waits until there is another holder than `before`.
    ///
    /// # Errors
    /// When there is none.
    pub fn wait_for_holder(&self, before: u32) -> Result<u32> {
        self.wait_for_another("holder", before, || self.holder_pid())
    }

    fn wait_for_another(
        &self,
        what: &str,
        before: u32,
        now: impl Fn() -> Result<u32>,
    ) -> Result<u32> {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            match now() {
                Ok(pid) if pid != before => return Ok(pid),
                _ if std::time::Instant::now() > deadline => {
                    anyhow::bail!("no {what} after {before}:\n{}", self.log().tail(40));
                }
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Kills the process that was started and the server below it with SIGKILL, and waits until both
    /// are gone. The holder stays.
    ///
    /// # Errors
    /// When they do not end.
    pub fn kill_supervisor_and_server(&mut self) -> Result<()> {
        self.kill_supervisor()?;
        let server = self.signal_server(Signal::KILL)?;
        wait_for_end(server)
    }

    /// The same, and the holder too.
    ///
    /// # Errors
    /// When they do not end.
    pub fn kill_everything(&mut self) -> Result<()> {
        // The server would start another holder.
        self.kill_supervisor_and_server()?;
        wait_for_end(self.kill_holder()?)
    }

    /// `soci-snapshotter-grpc upgrade`, with a program: has the daemon hand over.
    ///
    /// # Errors
    /// When it refuses; the message holds why.
    pub fn upgrade(&self) -> Result<String> {
        let mut command = std::process::Command::new(binary("soci-snapshotter-grpc")?);
        command.arg("--root").arg(self.root()).arg("upgrade");
        crate::cli::output_of(command)
    }

    /// How it has ended, if it has.
    ///
    /// # Errors
    /// When its state cannot be read.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.daemon.ended()
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// When it still runs after a while.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.daemon.wait(PATIENCE)
    }

    /// Starts it again on the same root and socket, after it ended; its lazy layers are mounted again then.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_again(&mut self) -> Result<()> {
        ensure!(self.daemon.ended()?.is_some(), "the daemon still runs");
        self.daemon = Self::spawn(&self.root, &self.socket, &self.options)?;
        ready(&mut self.daemon, &self.socket)?;
        // On a busy machine it serves before its layers are mounted.
        let log = self.log();
        let restoring = log.all().iter().any(|line| line.contains(RESTORING));
        let restored = |line: &str| line.contains(RESTORED);
        ensure!(
            !restoring || log.wait_for(0, PATIENCE, restored).is_some(),
            "the layers are not mounted again:\n{}",
            log.tail(40)
        );
        Ok(())
    }

    /// Starts it again with another configuration, for the same containerd.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_again_with(&mut self, options: SociDaemonOptions) -> Result<()> {
        let containerd = self.options.containerd.take();
        self.options = options;
        self.options.containerd = self.options.containerd.take().or(containerd);
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
        std::fs::write(&config, options.config_text())
            .context("write the daemon's configuration")?;
        let program = match &options.program {
            Some(program) => program.clone(),
            None => binary("soci-snapshotter-grpc")?,
        };
        Daemon::spawn("soci-snapshotter-grpc", root, program, |command| {
            command.arg("--address").arg(socket);
            command.arg("--root").arg(root.path().join("root"));
            command.arg("--config").arg(&config);
            command.args(["--log-level", &options.log_level]);
            if options.alone {
                command.arg("server-process");
            }
            command.envs(options.environment.iter().cloned());
        })
    }
}

fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A zombie's state is Z; the name before it may hold anything.
    stat.rsplit_once(')')
        .is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

fn wait_for_end(pid: u32) -> Result<()> {
    let deadline = std::time::Instant::now() + PATIENCE;
    while alive(pid) {
        ensure!(
            std::time::Instant::now() < deadline,
            "process {pid} does not end"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn mount_small(place: &Path, size: u64) -> Result<()> {
    use rustix::mount::{MountFlags, mount};
    let options = std::ffi::CString::new(format!("size={size}"))?;
    mount(
        "soci-tk",
        place,
        "tmpfs",
        MountFlags::empty(),
        Some(options.as_c_str()),
    )
    .with_context(|| format!("mount {}", place.display()))
}

fn signal_process(pid: u32, signal: Signal) -> Result<()> {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let number = number.context("bad process id")?;
    kill_process(number, signal).with_context(|| format!("signal {pid}"))
}

fn ready(daemon: &mut Daemon, socket: &Path) -> Result<()> {
    daemon.wait_ready(PATIENCE, |log| {
        socket.exists() && log.all().iter().any(|line| line.contains(STARTED))
    })
}
