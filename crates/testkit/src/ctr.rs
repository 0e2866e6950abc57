//! `ctr` against a private containerd: pulling images, running containers to their end.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

static NEXT_CONTAINER: AtomicU32 = AtomicU32::new(0);

/// `ctr` against one containerd in one namespace.
#[derive(Debug, Clone)]
pub struct Ctr {
    address: PathBuf,
    namespace: String,
}

/// A container to run to its end.
#[derive(Debug, Clone)]
pub struct Run {
    image: String,
    snapshotter: String,
    command: Vec<String>,
    options: Vec<String>,
}

impl Run {
    /// Runs `image` through `snapshotter` with the image's own command.
    #[must_use]
    pub fn new(image: &str, snapshotter: &str) -> Self {
        Self {
            image: image.to_owned(),
            snapshotter: snapshotter.to_owned(),
            command: Vec::new(),
            options: vec!["--net-host".to_owned()],
        }
    }

    /// With this command instead of the image's own.
    #[must_use]
    pub fn command<S: Into<String>>(mut self, command: impl IntoIterator<Item = S>) -> Self {
        self.command = command.into_iter().map(Into::into).collect();
        self
    }

    /// In a network namespace of its own, without any network: in a user namespace `/sys` of the
    /// host's cannot be mounted.
    #[must_use]
    pub fn without_network(mut self) -> Self {
        self.options.retain(|option| option != "--net-host");
        self
    }

    /// With one more option of `ctr run`.
    #[must_use]
    pub fn option(mut self, option: &str) -> Self {
        self.options.push(option.to_owned());
        self
    }
}

/// How a container ended.
#[derive(Debug, Clone)]
pub struct RunOutput {
    /// How `ctr run` ended: the status of the container's first process.
    pub status: ExitStatus,
    /// What the container wrote to stdout.
    pub stdout: String,
    /// What it, or `ctr`, wrote to stderr.
    pub stderr: String,
    /// From the start of `ctr run` to the first byte on stdout, if one came.
    pub first_output: Option<Duration>,
    /// From the start of `ctr run` to its end.
    pub elapsed: Duration,
}

impl Ctr {
    pub(crate) fn new(address: &Path, namespace: &str) -> Self {
        Self {
            address: address.to_owned(),
            namespace: namespace.to_owned(),
        }
    }

    /// A `ctr` command with address and namespace set.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new("ctr");
        command
            .arg("--address")
            .arg(&self.address)
            .args(["--namespace", &self.namespace]);
        command
    }

    /// Runs `ctr` with these arguments and returns its stdout.
    ///
    /// # Errors
    /// When it fails; the message holds its stderr.
    pub fn output<S: AsRef<std::ffi::OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<String> {
        let mut command = self.command();
        command.args(arguments);
        crate::cli::output_of(command)
    }

    /// Pulls an image with `ctr images pull` over plain HTTP and unpacks it.
    ///
    /// # Errors
    /// When `ctr` fails.
    pub fn pull(&self, reference: &str, snapshotter: &str) -> Result<()> {
        self.output([
            "images",
            "pull",
            "--plain-http",
            "--snapshotter",
            snapshotter,
            reference,
        ])
        .map(drop)
    }

    /// Runs a container to its end and removes it. A command that fails is no error here: see
    /// [`RunOutput::status`].
    ///
    /// # Errors
    /// When `ctr` cannot be started.
    pub fn run(&self, run: &Run) -> Result<RunOutput> {
        self.start(run)?.wait()
    }

    /// Runs a container to its end and returns its stdout, which must not be empty.
    ///
    /// On a busy machine `ctr` loses all output of a container that ends before `ctr` has opened
    /// its pipes (its Delete cancels the opening), so that silence is asked about again.
    ///
    /// # Errors
    /// When the container ends with another status than 0; the message holds its output.
    pub fn run_ok(&self, run: &Run) -> Result<String> {
        let mut output = self.run(run)?;
        for _ in 0..3 {
            if !output.status.success() || !output.stdout.is_empty() {
                break;
            }
            output = self.run(run)?;
        }
        ensure!(
            output.status.success(),
            "container of {} ended with {}:\n{}{}",
            run.image,
            output.status,
            output.stdout,
            output.stderr
        );
        Ok(output.stdout)
    }

    /// Starts a container that is waited for later.
    ///
    /// # Errors
    /// When `ctr` cannot be started.
    pub fn start(&self, run: &Run) -> Result<Running> {
        let id = format!(
            "tk-{}-{}",
            std::process::id(),
            NEXT_CONTAINER.fetch_add(1, Ordering::Relaxed)
        );
        let mut command = self.command();
        command.args(["run", "--rm", "--snapshotter", &run.snapshotter]);
        command
            .args(&run.options)
            .arg(&run.image)
            .arg(&id)
            .args(&run.command);
        Running::start(command, id)
    }
}

/// A container that runs.
#[derive(Debug)]
pub struct Running {
    id: String,
    started: Instant,
    child: std::process::Child,
    stdout: std::thread::JoinHandle<(Option<Duration>, String)>,
    stderr: std::thread::JoinHandle<(Option<Duration>, String)>,
}

impl Running {
    fn start(mut command: Command, id: String) -> Result<Self> {
        let started = Instant::now();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start ctr run")?;
        let stdout = collect(child.stdout.take().context("no stdout")?, started);
        let stderr = collect(child.stderr.take().context("no stderr")?, started);
        Ok(Self {
            id,
            started,
            child,
            stdout,
            stderr,
        })
    }

    /// The container's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Waits for the container's end.
    ///
    /// # Errors
    /// When the kernel cannot tell.
    pub fn wait(mut self) -> Result<RunOutput> {
        let status = self.child.wait().context("wait for ctr run")?;
        let elapsed = self.started.elapsed();
        let lost = |_| anyhow::anyhow!("the reader of a container's output panicked");
        let (first_output, stdout) = self.stdout.join().map_err(lost)?;
        let (_, stderr) = self.stderr.join().map_err(lost)?;
        Ok(RunOutput {
            status,
            stdout,
            stderr,
            first_output,
            elapsed,
        })
    }
}

fn collect(
    mut source: impl std::io::Read + Send + 'static,
    started: Instant,
) -> std::thread::JoinHandle<(Option<Duration>, String)> {
    std::thread::spawn(move || {
        let (mut first, mut all, mut buffer) = (None, Vec::new(), [0; 8192]);
        while let Ok(count) = source.read(&mut buffer) {
            if count == 0 {
                break;
            }
            first.get_or_insert_with(|| started.elapsed());
            all.extend_from_slice(&buffer[..count]);
        }
        (first, String::from_utf8_lossy(&all).into_owned())
    })
}
