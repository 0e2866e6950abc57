//! The process of a holder, which a process id alone does not name for long.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::socket::Conn;

/// How long a killed process may take to end.
const TO_END: Duration = Duration::from_secs(10);

/// The process that listens at the other end of a connection.
#[derive(Debug)]
pub(crate) struct HolderProcess {
    descriptor: OwnedFd,
    pub(crate) pid: u32,
}

impl HolderProcess {
    /// The process that listens for `conn`; `None` if it cannot be told, or is this one. To be called before
    /// it responds: the response then shows that the process id was still its own.
    pub(crate) fn of(conn: &Conn) -> Option<Self> {
        let pid = conn.peer().filter(|&pid| pid != std::process::id())?;
        let process = Pid::from_raw(i32::try_from(pid).ok()?)?;
        let descriptor = pidfd_open(process, PidfdFlags::empty()).ok()?;
        Some(Self { descriptor, pid })
    }

    /// Kills it. False if it does not end.
    pub(crate) fn kill(&self) -> bool {
        // It may have ended already.
        let _ = pidfd_send_signal(&self.descriptor, Signal::KILL);
        let mut watched = [PollFd::new(&self.descriptor, PollFlags::IN)];
        let limit = Timespec::try_from(TO_END).ok();
        poll(&mut watched, limit.as_ref()).is_ok_and(|ended| ended > 0)
    }
}
