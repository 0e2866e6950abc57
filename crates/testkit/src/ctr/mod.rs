//! `ctr` against a private containerd: pulling images, running containers to their end.

mod running;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Result, ensure};

pub use running::{RunOutput, Running};

/// Attempts to connect to containerd.
const CONNECTIONS: u32 = 20;

static NEXT_CONTAINER: AtomicU32 = AtomicU32::new(0);

/// An id for a container that no other one has: runc's state is the machine's, not a containerd's.
#[must_use]
pub fn container_id() -> String {
    let number = NEXT_CONTAINER.fetch_add(1, Ordering::Relaxed);
    format!("tk-{}-{number}", std::process::id())
}

/// `ctr` against one containerd in one namespace.
#[derive(Debug, Clone)]
pub struct Ctr {
    program: PathBuf,
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

    /// Uses a network namespace of its own, without any network: in a user namespace `/sys` of the
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

/// Whether `ctr` failed because containerd did not answer its handshake within a second, which is gRPC's limit
/// (`ConnectParams.MinConnectTimeout`, which containerd's client leaves at 0) and not enough on a busy machine. Nothing
/// has been done then.
fn never_connected(message: &str) -> bool {
    message.contains("timed out waiting for server handshake")
}

/// What a command puts out that reached containerd, or tried [`CONNECTIONS`] times to.
fn connected(mut command: impl FnMut() -> Result<RunOutput>) -> Result<RunOutput> {
    for _ in 1..CONNECTIONS {
        let output = command()?;
        if output.status.success() || !never_connected(&output.stderr) {
            return Ok(output);
        }
    }
    command()
}

/// The stdout of a container that ended with status 0.
fn succeeded(container: &str, output: RunOutput) -> Result<String> {
    let RunOutput {
        status,
        stdout,
        stderr,
        ..
    } = output;
    ensure!(
        status.success(),
        "container of {container} ended with {status}:\n{stdout}{stderr}"
    );
    Ok(stdout)
}

impl Ctr {
    pub(crate) fn new(program: &Path, address: &Path, namespace: &str) -> Self {
        Self {
            program: program.to_owned(),
            address: address.to_owned(),
            namespace: namespace.to_owned(),
        }
    }

    /// A `ctr` command with address and namespace set.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
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
        for _ in 1..CONNECTIONS {
            match crate::cli::output_of(&mut command) {
                Err(error) if never_connected(&error.to_string()) => {}
                outcome => return outcome,
            }
        }
        crate::cli::output_of(command)
    }

    /// Pulls an image with `ctr images pull` over plain HTTP and unpacks it: through the transfer
    /// service with containerd 2.x, whose default that is, else by itself.
    ///
    /// # Errors
    /// When `ctr` fails.
    pub fn pull(&self, reference: &str, snapshotter: &str) -> Result<()> {
        let pull = ["images", "pull", "--plain-http", "--snapshotter"];
        self.output(pull.into_iter().chain([snapshotter, reference]))
            .map(drop)
    }

    /// The same by `ctr` itself with every release: `--local`, which 1.6 does not know.
    ///
    /// # Errors
    /// When `ctr` fails.
    pub fn pull_locally(&self, reference: &str, snapshotter: &str) -> Result<()> {
        let help = self.output(["images", "pull", "--help"])?;
        let local = help.contains("--local").then_some("--local");
        let pull = ["images", "pull", "--plain-http", "--snapshotter"];
        let pull = pull.into_iter().chain([snapshotter]).chain(local);
        self.output(pull.chain([reference])).map(drop)
    }

    /// Runs a container to its end and removes it. A command that fails is not an error here: see
    /// [`RunOutput::status`].
    ///
    /// # Errors
    /// When `ctr` cannot be started.
    pub fn run(&self, run: &Run) -> Result<RunOutput> {
        connected(|| self.start(run)?.wait())
    }

    /// Runs a container to its end and returns its stdout.
    ///
    /// # Errors
    /// When the container ends with another status than 0; the message holds its output.
    pub fn run_ok(&self, run: &Run) -> Result<String> {
        succeeded(&run.image, self.run(run)?)
    }

    /// Starts a container that is waited for later.
    ///
    /// # Errors
    /// When `ctr` cannot be started.
    pub fn start(&self, run: &Run) -> Result<Running> {
        let id = container_id();
        let logged = running::Logged::new(&self.logs(), &id)?;
        let mut command = self.command();
        command
            .args(["run", "--rm", "--snapshotter", &run.snapshotter])
            .args(logged.options())
            .args(&run.options)
            .arg(&run.image)
            .arg(&id)
            .args(&run.command);
        Running::start(command, logged)
    }

    /// Starts the process of a container that has none, waits for its end, and returns its stdout.
    ///
    /// # Errors
    /// When it ends with another status than 0; the message holds its output.
    pub fn start_task(&self, container: &str) -> Result<String> {
        let output = connected(|| {
            let logged = running::Logged::new(&self.logs(), container)?;
            let mut command = self.command();
            command
                .args(["tasks", "start"])
                .args(logged.options())
                .arg(container);
            Running::start(command, logged)?.wait()
        })?;
        succeeded(container, output)
    }

    /// Where the output of containers goes: beside containerd's own files.
    fn logs(&self) -> PathBuf {
        self.address.with_file_name("output")
    }
}
