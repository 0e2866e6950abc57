//! A private temporary root, swept of processes, mounts and files when it is dropped.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use super::{kill_below, remove_control_groups, unmount_below};

/// Short: socket paths below it must fit into the 108 bytes of `sockaddr_un`.
const PREFIX: &str = "soci-tk.";
const LOCK: &str = ".lock";
/// Before the name of a root that is being made.
const HIDDEN: &str = "new-";

static SWEEP: Once = Once::new();
static NEXT: AtomicU32 = AtomicU32::new(0);

/// A folder for one test or one daemon below the system's temporary folder (`TMPDIR`).
///
/// Dropping it kills every process that belongs to it, unmounts everything below it and removes it.
/// Set `TESTKIT_KEEP=1` to keep the files for a look at them.
#[derive(Debug)]
pub struct TestRoot {
    path: PathBuf,
    /// Locked as long as this process lives: a folder that no process has locked is left over.
    _lock: File,
}

impl TestRoot {
    /// Makes a new root. The first one also sweeps what killed test runs left behind.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn new() -> Result<Self> {
        SWEEP.call_once(sweep_left_over);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = own_path(number);
        // Made under another name, so that no sweep ever sees it without its lock held.
        let hidden =
            std::env::temp_dir().join(format!("{HIDDEN}{PREFIX}{}.{number}", std::process::id()));
        std::fs::create_dir(&hidden).with_context(|| format!("make {}", hidden.display()))?;
        let lock = File::create(hidden.join(LOCK)).context("make the lock of a test root")?;
        lock.lock().context("lock a test root")?;
        std::fs::rename(&hidden, &path).with_context(|| format!("make {}", path.display()))?;
        Ok(Self { path, _lock: lock })
    }

    /// The root itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A folder below the root, made when it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn dir(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        std::fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(path)
    }

    /// Kills every process that belongs to the root and unmounts everything below it, keeping files.
    ///
    /// # Errors
    /// Names what could not be killed or unmounted.
    pub fn quiet(&self) -> Result<()> {
        clear(&self.path)
    }
}

impl Drop for TestRoot {
    fn drop(&mut self) {
        let cleared = clear(&self.path);
        if std::env::var_os("TESTKIT_KEEP").is_some() {
            return;
        }
        // Never remove files below a mount that stayed: they are someone else's.
        if cleared.is_ok() {
            // What cannot be removed now is swept by the next run.
            let _ = soci_dirtree::remove_path(&self.path);
        }
    }
}

fn clear(path: &Path) -> Result<()> {
    let alive = kill_below(path);
    anyhow::ensure!(
        alive.is_empty(),
        "processes {alive:?} of {} do not end",
        path.display()
    );
    remove_control_groups(path);
    unmount_below(path).with_context(|| format!("unmount what is below {}", path.display()))
}

/// For programs: at SIGINT or SIGTERM every root of this process is cleared and removed, then `then`
/// is called, which should end the process. Without it they are left to the next run's sweep.
///
/// # Errors
/// When no handler can be installed.
pub fn clean_up_at_signals(then: impl FnOnce() + Send + 'static) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("watch for signals")?;
    // From here on a signal is not lost, whenever the thread gets to it.
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (
            signal(SignalKind::interrupt()).context("watch for SIGINT")?,
            signal(SignalKind::terminate()).context("watch for SIGTERM")?,
        )
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
            });
            // The last one first: a containerd uses the snapshotter that was started before it.
            for number in (0..NEXT.load(Ordering::Relaxed)).rev() {
                let path = own_path(number);
                if path.exists() && clear(&path).is_ok() {
                    let _ = soci_dirtree::remove_path(&path);
                }
            }
            then();
        })
        .context("watch for signals")?;
    Ok(())
}

fn own_path(number: u32) -> PathBuf {
    std::env::temp_dir().join(format!("{PREFIX}{}.{number}", std::process::id()))
}

/// Removes the roots of test runs that were killed.
fn sweep_left_over() {
    let entries = std::fs::read_dir(std::env::temp_dir())
        .into_iter()
        .flatten();
    for entry in entries.flatten() {
        let name = entry.file_name();
        if is_left_over(&entry.path(), &name.to_string_lossy()) && clear(&entry.path()).is_ok() {
            // What stays is tried again by the next run.
            let _ = soci_dirtree::remove_path(&entry.path());
        }
    }
}

/// Whether a folder is a root that no process uses: its lock is free, or its process ended before it
/// had locked it, or after it had removed the lock with the rest.
fn is_left_over(path: &Path, name: &str) -> bool {
    let hidden = name.strip_prefix(HIDDEN);
    let Some(owner) = hidden.unwrap_or(name).strip_prefix(PREFIX) else {
        return false;
    };
    let ended = || {
        let pid = owner
            .split('.')
            .next()
            .and_then(|pid| pid.parse::<u32>().ok());
        pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
    };
    match File::open(path.join(LOCK)) {
        // Not locked yet, while it is being made.
        Ok(_) if hidden.is_some() => ended(),
        Ok(lock) => lock.try_lock().is_ok(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound && ended(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_left_over_whenever_its_process_was_killed() {
        let root = TestRoot::new().unwrap();
        let at = &root.dir("folder").unwrap();
        let (own, ended) = (std::process::id(), u32::MAX);
        let names = |pid| {
            [
                format!("{PREFIX}{pid}.0"),
                format!("{HIDDEN}{PREFIX}{pid}.0"),
            ]
        };
        // While it is made, or removed: the process decides.
        for name in names(own) {
            assert!(!is_left_over(at, &name), "{name}");
        }
        for name in names(ended) {
            assert!(is_left_over(at, &name), "{name}");
        }
        let lock = File::create(at.join(LOCK)).unwrap();
        lock.lock().unwrap();
        for pid in [own, ended] {
            assert!(!is_left_over(at, &names(pid)[0]), "a locked root is in use");
        }
        drop(lock);
        assert!(is_left_over(at, &names(ended)[0]));
        for other in ["soci-tk", "other.1.0", "new-other.1.0", "soci-tk.bystander"] {
            std::fs::remove_file(at.join(LOCK)).unwrap_or_default();
            assert!(!is_left_over(at, other), "{other}");
        }
    }
}
