//! Interrupted requests, and giving them up when their caller is killed, on a thread of its own.
//!
//! The kernel sends INTERRUPT for *every* signal, also for those that the program handles. To
//! answer EINTR then would be wrong: a page fault that gets it ends in SIGBUS, and few programs
//! expect it of a file. A request is therefore given up only if its thread is about to die, which the
//! thread's pending SIGKILL shows (every signal that kills becomes one, see `complete_signal` in
//! the kernel's signal.c). A pidfd would not help: it becomes readable when the thread has ended, and it
//! cannot end while it waits. The kernel does not send INTERRUPT twice: a request that was interrupted is
//! looked at again periodically.
//!
//! A container can have any number of its requests interrupted. The workers only pass them on, and this
//! thread looks at a limited number of callers in each round.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;

use crate::connection::Channel;
use crate::reply::{Reply, ReplySink as _};

/// Time between two rounds.
const PERIOD: Duration = Duration::from_millis(100);

/// Number of callers that are looked at in a round. A look reads a file of proc(5), some 10 µs.
const LOOKS: usize = 1000;

/// Number of interrupted requests that are visited in a round; most cost nothing but a look into a table.
const VISITS: usize = 16 * LOOKS;

/// Number of rounds after which a request that neither waits nor is being handled was answered, or is one
/// that an earlier server lost.
const ANSWERED_AFTER: u8 = 3;

/// The interrupted requests of all connections of a pool.
#[derive(Debug, Default)]
pub(crate) struct Interrupts {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    added: Vec<Interrupted>,
    stopping: bool,
}

#[derive(Debug)]
struct Interrupted {
    channel: Arc<Channel>,
    unique: u64,
    /// Number of rounds in which it neither waited nor was being handled.
    missing: u8,
}

/// What is to be done with an interrupted request.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Answer it with this error.
    Answer(Errno),
    /// Look again.
    Keep,
    /// It was answered, or its connection has ended.
    Drop,
}

impl Interrupts {
    /// Adds a request whose caller got a signal.
    pub(crate) fn add(&self, channel: Arc<Channel>, unique: u64) {
        let interrupted = Interrupted {
            channel,
            unique,
            missing: 0,
        };
        self.state.lock().added.push(interrupted);
        self.changed.notify_one();
    }

    /// Ends the thread after the request that it looks at.
    pub(crate) fn stop(&self) {
        self.state.lock().stopping = true;
        self.changed.notify_one();
    }

    fn is_stopping(&self) -> bool {
        self.state.lock().stopping
    }

    /// Looks after interrupted requests until [`Interrupts::stop`].
    pub(crate) fn run(&self) {
        let mut watched = VecDeque::new();
        let mut next_round = Instant::now();
        while let Some(added) = self.wait((!watched.is_empty()).then_some(next_round)) {
            // New ones first: most are of callers that are killed.
            self.round(added.into(), &mut watched, usize::MAX);
            if Instant::now() >= next_round {
                let round = std::mem::take(&mut watched);
                self.round(round, &mut watched, VISITS);
                next_round = Instant::now() + PERIOD;
            }
        }
    }

    /// Waits for interrupted requests, or until `deadline`. `None`: the thread is to end.
    fn wait(&self, deadline: Option<Instant>) -> Option<Vec<Interrupted>> {
        let mut state = self.state.lock();
        while state.added.is_empty() && !state.stopping {
            match deadline {
                None => self.changed.wait(&mut state),
                Some(deadline) => {
                    if self.changed.wait_until(&mut state, deadline).timed_out() {
                        break;
                    }
                }
            }
        }
        (!state.stopping).then(|| std::mem::take(&mut state.added))
    }

    /// Looks at the first `visits` of `requests`. What is to be looked at again comes to the end of `watched`,
    /// behind what was not looked at.
    fn round(
        &self,
        mut requests: VecDeque<Interrupted>,
        watched: &mut VecDeque<Interrupted>,
        visits: usize,
    ) {
        let mut kept = Vec::new();
        let mut looks = LOOKS;
        for _ in 0..requests.len().min(visits) {
            if looks == 0 || self.is_stopping() {
                break;
            }
            let Some(mut interrupted) = requests.pop_front() else {
                break;
            };
            match interrupted.verdict(&mut looks) {
                Verdict::Answer(errno) => interrupted.answer(errno),
                Verdict::Keep => kept.push(interrupted),
                Verdict::Drop => {}
            }
        }
        watched.append(&mut requests);
        watched.extend(kept);
    }
}

impl Interrupted {
    fn verdict(&mut self, looks: &mut usize) -> Verdict {
        let channel = &self.channel;
        if !channel.is_open() {
            return Verdict::Drop;
        }
        if let Some(caller) = channel.waiting().caller(self.unique) {
            self.missing = 0;
            *looks = looks.saturating_sub(1);
            return match is_dying(caller) {
                true => Verdict::Answer(Errno::INTR),
                false => Verdict::Keep,
            };
        }
        if channel
            .journal()
            .is_handling(channel.facts.key, self.unique)
        {
            return Verdict::Keep;
        }
        self.missing += 1;
        match (self.missing > ANSWERED_AFTER, channel.is_adopted()) {
            (false, _) => Verdict::Keep,
            (true, false) => Verdict::Drop,
            // If an earlier server lost it, its caller would wait for ever. If not, the kernel answers
            // ENOENT to this.
            (true, true) => Verdict::Answer(Errno::IO),
        }
    }

    fn answer(&self, errno: Errno) {
        // It may have been answered since.
        if errno == Errno::INTR && !self.channel.waiting().remove(self.unique) {
            return;
        }
        Reply::new(self.unique, self.channel.clone()).error(errno);
        self.channel.settle(self.unique);
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

    #[cfg(not(miri))]
    mod rounds {
        use super::*;
        use crate::connection::{Connection, ConnectionFacts, ContentIdentity};
        use crate::init::Negotiated;
        use crate::journal::Journal;

        fn channel(adopted: bool) -> Arc<Channel> {
            let nowhere = std::fs::File::options().write(true).open("/dev/null");
            let facts = ConnectionFacts {
                mountpoint: "/".into(),
                negotiated: Negotiated {
                    minor: 31,
                    flags: 0,
                    max_write: 0,
                    max_readahead: 0,
                    max_pages: 0,
                },
                content: ContentIdentity::default(),
                device: None,
                key: 1,
            };
            let connection = Connection::from_parts(nowhere.unwrap().into(), facts);
            let journal = Journal::create().unwrap();
            Arc::new(Channel::new(connection, journal, adopted))
        }

        fn interrupted(channel: &Arc<Channel>, unique: u64) -> Interrupted {
            Interrupted {
                channel: channel.clone(),
                unique,
                missing: 0,
            }
        }

        /// Verdicts of as many rounds as it takes until it is not kept.
        fn last_verdict(mut interrupted: Interrupted) -> Verdict {
            let verdicts = std::iter::repeat_with(|| interrupted.verdict(&mut 1));
            let mut verdicts = verdicts.take(100).filter(|it| *it != Verdict::Keep);
            verdicts.next().unwrap_or(Verdict::Keep)
        }

        #[test]
        fn a_caller_that_lives_keeps_waiting_and_an_answered_request_is_dropped() {
            let channel = channel(false);
            channel.waiting().add(7, std::process::id());
            assert_eq!(last_verdict(interrupted(&channel, 7)), Verdict::Keep);
            assert!(channel.waiting().remove(7));
            assert_eq!(last_verdict(interrupted(&channel, 7)), Verdict::Drop);
            channel.close();
            assert_eq!(interrupted(&channel, 7).verdict(&mut 1), Verdict::Drop);
        }

        #[test]
        fn a_request_that_an_earlier_server_lost_is_answered() {
            let lost = interrupted(&channel(true), 7);
            assert_eq!(last_verdict(lost), Verdict::Answer(Errno::IO));
        }

        /// The worker that reads it has other connections to serve.
        #[test]
        fn what_is_added_is_not_looked_at_before_a_round_of_the_thread() {
            let channel = channel(true);
            let interrupts = Interrupts::default();
            // Lost by an earlier server: a few looks decide that it is answered.
            for _ in 0..10 * u32::from(ANSWERED_AFTER) {
                interrupts.add(channel.clone(), 7);
            }
            let added = interrupts.wait(None).unwrap();
            assert_eq!(added.len(), 10 * usize::from(ANSWERED_AFTER));
            assert!(added.iter().all(|interrupted| interrupted.missing == 0));
        }

        #[test]
        fn a_round_looks_at_a_limited_number_of_callers_and_each_gets_its_turn() {
            let channel = channel(false);
            let interrupts = Interrupts::default();
            let count = 2 * LOOKS as u64 + 10;
            for unique in 0..count {
                channel.waiting().add(unique, std::process::id());
            }
            let all: VecDeque<_> = (0..count).map(|it| interrupted(&channel, it)).collect();
            let mut watched = VecDeque::new();
            interrupts.round(all, &mut watched, usize::MAX);
            assert_eq!(watched.len() as u64, count);
            assert_eq!(watched[0].unique, LOOKS as u64);
            let round = std::mem::take(&mut watched);
            interrupts.round(round, &mut watched, usize::MAX);
            assert_eq!(watched[0].unique, 2 * LOOKS as u64);
            let round = std::mem::take(&mut watched);
            interrupts.round(round, &mut watched, 20);
            assert_eq!(watched.len() as u64, count);
            assert_eq!(watched[0].unique, 10, "the oldest that had no look");
        }
    }
}
