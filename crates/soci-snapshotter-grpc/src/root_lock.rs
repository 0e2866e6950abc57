//! The lock of the root folder: one server has it, which a supervisor keeps running.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::{Pid, PidfdFlags, Signal, getppid, pidfd_open, pidfd_send_signal};
use soci_store::{Owner, RootLock, StoreError};

/// How long a server without supervisor may take to end when the next daemon starts.
const ORPHAN_ENDS: Duration = Duration::from_secs(20);
/// How long a process that was killed may keep the lock after the kernel has closed its files.
const LOCK_GOES: Duration = Duration::from_secs(2);

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
    let (mut asked, mut logged) = (false, false);
    loop {
        match RootLock::acquire(root, owner) {
            Err(StoreError::Locked {
                owner: Some(other), ..
            }) if is_orphan(other) && begin.elapsed() < ORPHAN_ENDS => {
                if !asked {
                    if !logged {
                        tracing::warn!(
                            pid = other.server,
                            "asking a server without supervisor to release the root folder"
                        );
                        logged = true;
                    }
                    match signal(root, other, Receiver::Server, Signal::TERM) {
                        Ok(()) => asked = true,
                        // It has ended between the two looks.
                        Err(_) if begin.elapsed() < LOCK_GOES => {}
                        Err(error) => return Err(error),
                    }
                } else if begin.elapsed() > ORPHAN_ENDS / 2 {
                    signal(root, other, Receiver::Server, Signal::KILL)?;
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

/// A process of an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Receiver {
    Supervisor,
    Server,
}

/// Signals a process of the owner of the root folder, if it still is the owner: another process may have its
/// number by now, or in this PID namespace.
///
/// # Errors
/// If the owner is another one, or not of this PID namespace, or has ended.
pub(crate) fn signal(
    root: &Path,
    owner: Owner,
    receiver: Receiver,
    signal: Signal,
) -> anyhow::Result<()> {
    let pid = match receiver {
        Receiver::Server => Some(owner.server),
        Receiver::Supervisor => owner.supervisor,
    };
    let process = pid.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    let process = process.context("the root folder names no process")?;
    let descriptor = pidfd_open(process, PidfdFlags::empty())
        .with_context(|| format!("cannot open process {process:?}"))?;
    // The kernel reports which process has the lock now, so that the descriptor, which is older, is of that process.
    if RootLock::owner(root)? != Some(owner) {
        anyhow::bail!(
            "process {process:?}, which {} names, does not have it as seen from here: is it of another \
             container or PID namespace?",
            root.join("daemon.lock").display()
        );
    }
    pidfd_send_signal(&descriptor, signal)
        .with_context(|| format!("cannot signal process {process:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_does_not_have_the_lock_is_not_signalled() {
        let root = tempfile::tempdir().unwrap();
        let mut stranger = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        // As from another PID namespace: the number in the file is that of another process here.
        let named = Owner {
            supervisor: None,
            server: stranger.id(),
        };
        let lock = RootLock::acquire(root.path(), named).unwrap();
        let refused = signal(root.path(), named, Receiver::Server, Signal::KILL).unwrap_err();
        assert!(refused.to_string().contains("PID namespace"), "{refused}");
        assert!(stranger.try_wait().unwrap().is_none());

        let us = ourselves(false);
        lock.set_owner(us);
        // SIGCONT does nothing to a process that runs.
        signal(root.path(), us, Receiver::Server, Signal::CONT).unwrap();
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    }
}
