//! Deferred requests, and giving them up when their caller is killed.
//!
//! The kernel sends INTERRUPT for *every* signal, also for those that the program handles. To
//! answer EINTR then would be wrong: a page fault that gets it ends in SIGBUS, and few programs
//! expect it of a file. A request is therefore given up only if its thread is about to die, which the
//! thread's pending SIGKILL shows (every signal that kills becomes one, see `complete_signal` in
//! the kernel's signal.c). The kernel does not send INTERRUPT twice: a request that was
//! interrupted is checked again periodically.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

/// Number of interrupted requests of all connections of a pool: while it is 0, no worker has to look at
/// any of them.
#[derive(Debug, Default, Clone)]
pub(crate) struct InterruptedCount(Arc<AtomicUsize>);

impl InterruptedCount {
    pub(crate) fn is_zero(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }

    fn add(&self, requests: usize) {
        self.0.fetch_add(requests, Ordering::Relaxed);
    }

    fn subtract(&self, requests: usize) {
        self.0.fetch_sub(requests, Ordering::Relaxed);
    }
}

/// The requests of one connection that wait.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    requests: Mutex<HashMap<u64, Waiter>>,
    interrupted: InterruptedCount,
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
    /// Its caller keeps waiting.
    KeepWaiting,
    /// No such request waits: it was answered, or is being handled.
    NotWaiting,
}

impl Waiting {
    pub(crate) fn new(interrupted: InterruptedCount) -> Self {
        Self {
            requests: Mutex::default(),
            interrupted,
        }
    }

    pub(crate) fn add(&self, unique: u64, pid: u32) {
        let waiter = Waiter {
            pid,
            interrupted: false,
        };
        let replaced = self.requests.lock().insert(unique, waiter);
        self.no_longer_waits(replaced.as_ref());
    }

    /// Removes a request; false if it was given up before.
    pub(crate) fn remove(&self, unique: u64) -> bool {
        let removed = self.requests.lock().remove(&unique);
        self.no_longer_waits(removed.as_ref());
        removed.is_some()
    }

    pub(crate) fn interrupt(&self, unique: u64) -> Verdict {
        let mut requests = self.requests.lock();
        let Some(waiter) = requests.get_mut(&unique) else {
            return Verdict::NotWaiting;
        };
        if is_dying(waiter.pid) {
            let removed = requests.remove(&unique);
            self.no_longer_waits(removed.as_ref());
            return Verdict::GiveUp;
        }
        if !waiter.interrupted {
            waiter.interrupted = true;
            self.interrupted.add(1);
        }
        Verdict::KeepWaiting
    }

    /// Removes and returns the interrupted requests whose callers are dying by now.
    pub(crate) fn abandoned(&self) -> Vec<u64> {
        let mut requests = self.requests.lock();
        let dying = |_: &u64, waiter: &mut Waiter| waiter.interrupted && is_dying(waiter.pid);
        let dying: Vec<u64> = requests
            .extract_if(dying)
            .map(|(unique, _)| unique)
            .collect();
        self.interrupted.subtract(dying.len());
        dying
    }

    fn no_longer_waits(&self, waiter: Option<&Waiter>) {
        if waiter.is_some_and(|waiter| waiter.interrupted) {
            self.interrupted.subtract(1);
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let waiters = self.requests.get_mut().values();
        let interrupted = waiters.filter(|waiter| waiter.interrupted).count();
        self.interrupted.subtract(interrupted);
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
        let count = InterruptedCount::default();
        let waiting = Waiting::new(count.clone());
        assert_eq!(waiting.interrupt(7), Verdict::NotWaiting);
        waiting.add(7, std::process::id());
        assert!(count.is_zero());
        for _ in 0..2 {
            assert_eq!(waiting.interrupt(7), Verdict::KeepWaiting);
        }
        assert!(!count.is_zero());
        assert_eq!(waiting.abandoned(), Vec::<u64>::new());
        assert!(waiting.remove(7));
        assert!(!waiting.remove(7));
        assert_eq!(waiting.abandoned(), Vec::<u64>::new());
        assert!(count.is_zero());
    }

    #[test]
    fn no_interrupted_request_is_counted_of_a_connection_that_is_gone() {
        let count = InterruptedCount::default();
        let waiting = Waiting::new(count.clone());
        for unique in 0..3 {
            waiting.add(unique, std::process::id());
            waiting.interrupt(unique);
        }
        // It comes again.
        waiting.add(2, std::process::id());
        waiting.remove(1);
        assert!(!count.is_zero());
        drop(waiting);
        assert!(count.is_zero());
    }
}
