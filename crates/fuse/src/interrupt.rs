//! Requests that wait for their answer, and giving them up when their caller is killed.
//!
//! The kernel sends INTERRUPT for *every* signal, also for those that the program handles. To
//! answer EINTR then would be wrong: a page fault that gets it ends in SIGBUS, and few programs
//! expect it of a file. So a request is given up only if its thread is about to die, which the
//! thread's pending SIGKILL shows (every signal that kills becomes one, see `complete_signal` in
//! the kernel's signal.c). The kernel does not send INTERRUPT twice: a request that was
//! interrupted is looked at again from time to time.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

/// The requests of one connection that wait.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    requests: Mutex<HashMap<u64, Waiter>>,
    /// Whether any of them was interrupted.
    interrupted: AtomicBool,
}

#[derive(Debug)]
struct Waiter {
    pid: u32,
    interrupted: bool,
}

/// What to do about an INTERRUPT.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Answer the interrupted request with EINTR.
    GiveUp,
    /// Its caller goes on waiting.
    KeepWaiting,
    /// No such request waits: it was answered, or is just being handled.
    NotWaiting,
}

impl Waiting {
    pub(crate) fn add(&self, unique: u64, pid: u32) {
        let waiter = Waiter {
            pid,
            interrupted: false,
        };
        self.requests.lock().insert(unique, waiter);
    }

    /// False if it was given up before.
    pub(crate) fn remove(&self, unique: u64) -> bool {
        self.requests.lock().remove(&unique).is_some()
    }

    pub(crate) fn interrupt(&self, unique: u64) -> Verdict {
        let mut requests = self.requests.lock();
        let Some(waiter) = requests.get_mut(&unique) else {
            return Verdict::NotWaiting;
        };
        if is_dying(waiter.pid) {
            requests.remove(&unique);
            return Verdict::GiveUp;
        }
        waiter.interrupted = true;
        self.interrupted.store(true, Ordering::Relaxed);
        Verdict::KeepWaiting
    }

    /// Whether [`Waiting::abandoned`] must be asked from time to time.
    pub(crate) fn has_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// The interrupted requests whose callers are dying by now. They wait no longer.
    pub(crate) fn abandoned(&self) -> Vec<u64> {
        let mut requests = self.requests.lock();
        let dying: Vec<u64> = requests
            .iter()
            .filter(|(_, waiter)| waiter.interrupted && is_dying(waiter.pid))
            .map(|(&unique, _)| unique)
            .collect();
        for unique in &dying {
            requests.remove(unique);
        }
        let any = requests.values().any(|waiter| waiter.interrupted);
        self.interrupted.store(any, Ordering::Relaxed);
        dying
    }
}

/// Whether a thread has SIGKILL pending. False if it is not visible.
fn is_dying(pid: u32) -> bool {
    if pid == 0 {
        return false;
    }
    let mut path = String::from("/proc/");
    let _ = write!(path, "{pid}/status");
    // Reading this file takes no lock that a thread in a page fault could hold.
    std::fs::read(path).is_ok_and(|status| has_sigkill_pending(&status))
}

/// Reads the lines `SigPnd:` (thread) and `ShdPnd:` (process) of /proc/PID/status: hexadecimal
/// masks, bit N-1 for signal N.
fn has_sigkill_pending(status: &[u8]) -> bool {
    const SIGKILL_BIT: u64 = 1 << 8;
    status.split(|&byte| byte == b'\n').any(|line| {
        line.strip_prefix(b"SigPnd:")
            .or_else(|| line.strip_prefix(b"ShdPnd:"))
            .and_then(|mask| std::str::from_utf8(mask).ok())
            .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
            .is_some_and(|mask| mask & SIGKILL_BIT != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_pending_sigkill_counts_as_dying() {
        let status = |sig: &str| format!("Name:\tcat\nSigPnd:\t{sig}\nShdPnd:\t0000\n");
        assert!(has_sigkill_pending(status("0000000000000100").as_bytes()));
        assert!(!has_sigkill_pending(status("0000000000000200").as_bytes()));
        assert!(!has_sigkill_pending(b"SigPnd: what\n"));
        assert!(!is_dying(std::process::id()));
        assert!(!is_dying(0));
    }

    #[test]
    fn a_caller_that_lives_goes_on_waiting() {
        let waiting = Waiting::default();
        assert_eq!(waiting.interrupt(7), Verdict::NotWaiting);
        waiting.add(7, std::process::id());
        assert_eq!(waiting.interrupt(7), Verdict::KeepWaiting);
        assert!(waiting.has_interrupted());
        assert_eq!(waiting.abandoned(), Vec::<u64>::new());
        assert!(waiting.remove(7));
        assert!(!waiting.remove(7));
        assert_eq!(waiting.abandoned(), Vec::<u64>::new());
        assert!(!waiting.has_interrupted());
    }
}
