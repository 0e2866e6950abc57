//! Our own CLI, and where our two programs are.

use std::borrow::BorrowMut;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};

/// Our CLI against one containerd.
#[derive(Debug, Clone)]
pub struct SociCli {
    program: PathBuf,
    arguments: Vec<std::ffi::OsString>,
}

impl SociCli {
    /// The CLI for `convert --standalone` and the like, which talk to no containerd.
    ///
    /// # Errors
    /// When the program cannot be built or found.
    pub fn standalone() -> Result<Self> {
        Ok(Self {
            program: binary("soci")?,
            arguments: Vec::new(),
        })
    }

    /// The CLI against a containerd, in a namespace.
    ///
    /// # Errors
    /// When the program cannot be built or found.
    pub fn against(containerd: &Path, namespace: &str) -> Result<Self> {
        let arguments = vec![
            "--address".into(),
            containerd.into(),
            "--namespace".into(),
            namespace.into(),
        ];
        Ok(Self {
            program: binary("soci")?,
            arguments,
        })
    }

    /// The command with these arguments, not yet run.
    #[must_use]
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).args(arguments);
        command
    }

    /// Runs `convert --standalone` with these options and returns its stdout.
    ///
    /// # Errors
    /// When it fails; the message holds its stderr.
    pub fn convert(&self, options: &[&str], source: &str, target: &str) -> Result<String> {
        let arguments = [&["convert", "--standalone"], options, &[source, target]];
        self.output(arguments.concat())
    }

    /// Runs it and returns its stdout.
    ///
    /// # Errors
    /// When it fails; the message holds its stderr.
    pub fn output<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<String> {
        output_of(self.command(arguments))
    }
}

/// Runs a command and returns its stdout; a failure carries its output.
///
/// # Errors
/// When it does not start, or ends with another status than 0.
pub fn output_of(mut command: impl BorrowMut<Command>) -> Result<String> {
    let command = command.borrow_mut();
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or_default()
        .to_owned();
    let shown: Vec<_> = command
        .get_args()
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    let output = command
        .output()
        .with_context(|| format!("start {}", program.display()))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!(
            "{} {} ended with {}:\n{stdout}{}",
            program.display(),
            shown.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(stdout)
}

/// Where one of our two programs is.
///
/// `SOCI_BIN_DIR` names a folder that holds both. Otherwise they are built (once per process, in the
/// profile of the running test) with the cargo that runs the test, so that they are never stale.
///
/// # Errors
/// When there is no such program, or building fails.
pub fn binary(name: &str) -> Result<PathBuf> {
    static FOLDER: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| binaries().map_err(|error| format!("{error:#}")));
    let path = folder
        .as_ref()
        .map_err(|error| anyhow::anyhow!("{error}"))?
        .join(name);
    ensure!(
        path.is_file(),
        "there is no {}: build it, or set SOCI_BIN_DIR",
        path.display()
    );
    Ok(path)
}

fn binaries() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("SOCI_BIN_DIR") {
        return Ok(PathBuf::from(folder));
    }
    // target/<profile>/deps/<test> or target/<profile>/<program>
    let own = std::env::current_exe().context("find this program")?;
    let folder = own
        .ancestors()
        .skip(1)
        .find(|folder| !folder.ends_with("deps"))
        .context("this program is in no folder")?
        .to_owned();
    if let Some(cargo) = std::env::var_os("CARGO") {
        let mut command = Command::new(cargo);
        command.current_dir(env!("CARGO_MANIFEST_DIR"));
        command.args([
            "build",
            "--quiet",
            "-p",
            "soci",
            "-p",
            "soci-snapshotter-grpc",
        ]);
        if folder.ends_with("release") {
            command.arg("--release");
        }
        output_of(command).context("build our two programs")?;
    }
    Ok(folder)
}
