//! Starting a holder where nothing ends it together with its server.
//!
//! systemd kills everything in a service's control group when it restarts the service (`KillMode=control-group`,
//! the default), so that under systemd the holder is put into a scope of its own. Elsewhere a session of
//! its own is enough. Its name and command line differ from the daemon's: who kills the daemon by name does not
//! mean the holder.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, fstat};

use crate::HolderError;
use crate::client::Client;

/// What a holder is called in the list of processes.
pub const PROCESS_NAME: &str = "soci-holder";

/// Tells the process its root folder.
const ROOT: &str = "SOCI_HOLDER_ROOT";

/// Only where systemd is the system's manager.
const SYSTEMD: &str = "/run/systemd/system";

/// How long a holder may take to listen.
const PATIENCE: Duration = Duration::from_secs(10);

/// The root folder, if this process was started to be a holder.
#[must_use]
pub fn root_of_holder() -> Option<PathBuf> {
    let name = std::env::args_os().next()?;
    let root = std::env::var_os(ROOT)?;
    (name == OsStr::new(PROCESS_NAME)).then(|| root.into())
}

/// Replaces this process by a holder for the root folder in its environment, under its own name.
///
/// # Errors
/// If that fails; otherwise this does not return.
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
                "the holder cannot be put into a systemd scope: it ends with the service, and then \
                 containers do not survive a restart of the service"
            ),
        }
    }
    let mut plain = Command::new("/proc/self/exe");
    plain.arg0(PROCESS_NAME);
    start(plain, root)
}

/// systemd-run(1) makes the scope, enters it, and becomes what it is told to run.
fn scope(root: &Path, argument: &str) -> Command {
    let mut command = Command::new("systemd-run");
    command
        .args(["--scope", "--quiet", "--collect", "--slice=system.slice"])
        .arg(format!("--unit={}", scope_name(root)))
        .arg("--description=Keeps the mounts of the SOCI snapshotter while it is replaced")
        // At shutdown: after the containers, and not by waiting for what it ignores.
        .args([
            "--property=Before=containerd.service",
            "--property=KillSignal=SIGINT",
        ])
        .args(["--property=TimeoutStopSec=10s", "--"])
        // The process that calls this one is there until a server is ready.
        .arg(format!("/proc/{}/exe", std::process::id()))
        .arg(argument);
    command
}

/// A unit's name may have letters, digits and a few signs, and is not used twice at a time.
fn scope_name(root: &Path) -> String {
    let place: String = root
        .to_string_lossy()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let place = place.trim_matches('-');
    let cut = place.len().saturating_sub(100);
    let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    format!(
        "soci-holder-{}-{:x}",
        &place.get(cut..).unwrap_or_default(),
        since.as_millis()
    )
}

fn start(mut command: Command, root: &Path) -> Result<Child, HolderError> {
    command
        .env(ROOT, root)
        // The service manager waits for the daemon's word, not for ours.
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
        if let Ok(Some(_)) = Client::look(root) {
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
                "it does not listen after {} s",
                PATIENCE.as_secs()
            )));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A pipe or terminal must not stay open for as long as the holder lives: somebody may wait for its end.
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
