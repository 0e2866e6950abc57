//! The lock of the root folder: one server has it, which a supervisor keeps running.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, getppid, kill_process};
use soci_store::{Owner, RootLock, StoreError};

/// How long a server without supervisor may take to end when the next daemon starts.
const ORPHAN_ENDS: Duration = Duration::from_secs(20);

/// The owner to record for this process. Without a supervisor it takes that part, too.
pub(crate) fn ourselves(supervised: bool) -> Owner {
    let server = std::process::id();
    let parent = getppid().and_then(|pid| u32::try_from(pid.as_raw_nonzero().get()).ok());
    Owner {
        supervisor: Some(parent.filter(|_| supervised).unwrap_or(server)),
        server,
    }
}

/// Creates the root folder if it does not exist, and locks it. Blocks while a server ends whose supervisor
/// was killed: it serves until the next daemon starts, which asks it to end.
pub(crate) fn lock(root: &Path, owner: Owner) -> anyhow::Result<RootLock> {
    let begin = Instant::now();
    let mut asked = false;
    loop {
        match RootLock::acquire(root, owner) {
            Err(StoreError::Locked {
                owner: Some(other), ..
            }) if is_orphan(other) && begin.elapsed() < ORPHAN_ENDS => {
                if !asked {
                    tracing::warn!(
                        pid = other.server,
                        "asking a server without supervisor to release the root folder"
                    );
                    signal(other.server, Signal::TERM);
                    asked = true;
                } else if begin.elapsed() > ORPHAN_ENDS / 2 {
                    signal(other.server, Signal::KILL);
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            // It may be about to end.
            Err(StoreError::Locked { .. }) if asked && begin.elapsed() < ORPHAN_ENDS => {
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return other.context("cannot use the folder given by --root"),
        }
    }
}

/// Returns the owner of the root folder, if it is locked.
pub(crate) fn owner(root: &Path) -> anyhow::Result<Option<Owner>> {
    Ok(RootLock::owner(root)?)
}

fn is_orphan(owner: Owner) -> bool {
    owner.supervisor.is_none_or(|pid| !exists(pid))
}

fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // It may have ended already.
        let _ = kill_process(pid, signal);
    }
}
