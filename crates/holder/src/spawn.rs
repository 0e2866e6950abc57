//! Starting a holder so that it does not end together with its server.
//!
//! systemd kills everything in a service's control group when it restarts the service (`KillMode=control-group`,
//! the default); under systemd the holder therefore gets a scope of its own. Elsewhere a session of its own
//! is enough. Its name and command line differ from the daemon's, so that `pkill soci-snapshotter` does not
//! hit the holder.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, fstat};

use crate::HolderError;
use crate::client::HolderClient;

/// The name of a holder in the list of processes.
pub const PROCESS_NAME: &str = "soci-holder";

/// Environment variable of a holder: its root folder.
const ROOT: &str = "SOCI_HOLDER_ROOT";

/// Exists if systemd is the system's manager.
const SYSTEMD: &str = "/run/systemd/system";

/// How long a holder may take to listen.
const PATIENCE: Duration = Duration::from_secs(10);

/// Returns the root folder if this process was started to be a holder.
#[must_use]
pub fn root_of_holder() -> Option<PathBuf> {
    let name = std::env::args_os().next()?;
    let root = std::env::var_os(ROOT)?;
    (name == OsStr::new(PROCESS_NAME)).then(|| root.into())
}

/// Replaces this process by a holder, with a name of its own, for the root folder in its environment.
/// Returns only if that fails.
pub fn become_holder() -> HolderError {
    let failed = Command::new("/proc/self/exe").arg0(PROCESS_NAME).exec();
    HolderError::Spawn(format!("cannot run this program again: {failed}"))
}

/// Starts a holder for `root` and waits until it listens. `argument` is what makes this program call
/// [`become_holder`].
pub(crate) fn spawn(root: &Path, argument: &str) -> Result<Child, HolderError> {
    let in_scope = Path::new(SYSTEMD).exists();
    if in_scope {
        match start(scope(root, argument), root) {
            Ok(child) => return Ok(child),
            Err(error) => tracing::warn!(
                error = %error,
                "cannot start the holder in a systemd scope: it ends with the service, and containers do not \
                 survive a restart of the service"
            ),
        }
    }
    let mut plain = Command::new("/proc/self/exe");
    plain.arg0(PROCESS_NAME);
    start(plain, root)
}

/// systemd-run(1) creates the scope, enters it, and executes the command.
fn scope(root: &Path, argument: &str) -> Command {
    let mut command = Command::new("systemd-run");
    command
        .args(["--scope", "--quiet", "--collect", "--slice=system.slice"])
        .arg(format!("--unit={}", scope_name(root)))
        .arg("--description=Keeps the mounts of the SOCI snapshotter while it is replaced")
        // At shutdown it ends after the containers, and by a signal that it does not ignore.
        .args([
            "--property=Before=containerd.service",
            "--property=KillSignal=SIGINT",
        ])
        .args(["--property=TimeoutStopSec=10s", "--"])
        // The calling process runs until a server is ready.
        .arg(format!("/proc/{}/exe", std::process::id()))
        .arg(argument);
    command
}

/// Returns a name for the unit: letters, digits and a few signs are allowed, and it must be unique.
fn scope_name(root: &Path) -> String {
    let name: String = root
        .to_string_lossy()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let name = name.trim_matches('-');
    let cut = name.len().saturating_sub(100);
    let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    format!(
        "soci-holder-{}-{:x}",
        &name.get(cut..).unwrap_or_default(),
        since.as_millis()
    )
}

fn start(mut command: Command, root: &Path) -> Result<Child, HolderError> {
    command
        .env(ROOT, root)
        // The service manager waits for the daemon's notification, not for the holder's.
        .env_remove("NOTIFY_SOCKET")
        .env_remove("LISTEN_FDS")
        .env_remove("LISTEN_PID")
        .env_remove("LISTEN_FDNAMES")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(if stderr_may_be_kept() {
            Stdio::inherit()
        } else {
            Stdio::null()
        });
    let mut child = command
        .spawn()
        .map_err(|e| HolderError::Spawn(format!("{:?}: {e}", command.get_program())))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(Some(_)) = HolderClient::look(root) {
            return Ok(child);
        }
        if let Ok(Some(status)) = child.try_wait() {
            return Err(HolderError::Spawn(format!(
                "{:?} ended ({status})",
                command.get_program()
            )));
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            return Err(HolderError::Spawn(format!(
                "it did not listen within {} s",
                PATIENCE.as_secs()
            )));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A pipe or terminal must not stay open for as long as the holder lives: its reader may wait for the end.
fn stderr_may_be_kept() -> bool {
    fstat(std::io::stderr()).is_ok_and(|stat| {
        matches!(
            FileType::from_raw_mode(stat.st_mode),
            FileType::Socket | FileType::RegularFile
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_named_after_its_root_in_letters_that_systemd_takes() {
        let name = scope_name(Path::new("/var/lib/soci snapshotter/"));
        assert!(
            name.starts_with("soci-holder-var-lib-soci-snapshotter-"),
            "{name}"
        );
        let long = format!("/{}", "é/x".repeat(200));
        let name = scope_name(Path::new(&long));
        assert!(name.len() < 200 && name.is_ascii(), "{name}");
    }
}
