//! `soci-snapshotter-grpc upgrade`: makes the running daemon hand over to the installed program, and waits
//! for the outcome.

use std::io::ErrorKind;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::root_lock::{self, Receiver};

/// Longer than all limits of a hand-over together.
const PATIENCE: Duration = Duration::from_secs(240);

/// The outcome of the last hand-over.
#[derive(Debug, Serialize, Deserialize)]
struct Outcome {
    /// Why it failed, and the state of the old server; absent after a success.
    error: Option<String>,
}

fn file(root: &Path) -> PathBuf {
    root.join("upgrade.json")
}

/// Writes the outcome to the file that [`run`] waits for.
pub(crate) fn report(root: &Path, outcome: Result<(), String>) {
    let outcome = Outcome {
        error: outcome.err(),
    };
    let (path, unfinished) = (file(root), file(root).with_extension("new"));
    let written = serde_json::to_vec(&outcome)
        .map_err(std::io::Error::from)
        .and_then(|text| write_private(&unfinished, &text))
        .and_then(|()| std::fs::rename(&unfinished, &path));
    if let Err(error) = written {
        tracing::warn!(path = %path.display(), error = %error, "cannot write the outcome of a hand-over");
    }
}

fn write_private(path: &Path, text: &[u8]) -> std::io::Result<()> {
    // An unfinished file of another mode may be left.
    let _ = std::fs::remove_file(path);
    let file = std::fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    file?.write_all(text)
}

/// Requests a hand-over of the daemon of `root` and waits for its outcome.
///
/// # Errors
/// If there is no daemon, or the hand-over failed; the error includes the state of the old server.
pub(crate) fn run(root: &Path) -> anyhow::Result<()> {
    let owner = root_lock::owner(root)?
        .filter(|owner| owner.supervisor.is_some())
        .with_context(|| format!("no daemon runs with --root {}", root.display()))?;
    let path = file(root);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", path.display()));
        }
        _ => {}
    }
    root_lock::signal(root, owner, Receiver::Supervisor, Signal::HUP)
        .context("cannot reach the daemon")?;
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Ok(text) = std::fs::read(&path) {
            let outcome: Outcome = serde_json::from_slice(&text)
                .with_context(|| format!("cannot read {}", path.display()))?;
            return match outcome.error {
                None => Ok(()),
                Some(error) => bail!(error),
            };
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    bail!(
        "no outcome after {} s; the daemon's log says more",
        PATIENCE.as_secs()
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_outcome_is_readable_to_its_owner_only_also_if_an_earlier_one_was_open() {
        let root = tempfile::tempdir().unwrap();
        let unfinished = file(root.path()).with_extension("new");
        for left in [file(root.path()), unfinished] {
            std::fs::write(&left, "{}").unwrap();
            std::fs::set_permissions(&left, std::fs::Permissions::from_mode(0o644)).unwrap();
        }
        report(root.path(), Err("layer sha256:1".to_owned()));
        let metadata = file(root.path()).metadata().unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
    }
}
