//! The threads that verify and inflate spans: few, because the work is pure computing, and separate
//! from those of the runtime, so that requests continue.
//!
//! What no reader waits for has threads of its own with a lower priority in the kernel: it gets the
//! processor time that programs, and spans that a reader waits for, leave. When a reader comes for
//! such a span, its work is [hastened](InflatePool::hasten).

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::process::Pid;

use crate::priority::Priority;
use crate::span_key::SpanKey;

/// Idle time after which a thread frees its buffer.
const KEEP_BUFFER: Duration = Duration::from_secs(2);
/// Capacity in bytes above which a buffer is freed after its use.
const LARGEST_KEPT: usize = 16 << 20;

/// Work on a span. The buffer belongs to the thread and receives the uncompressed bytes.
pub(crate) type Work = Box<dyn FnOnce(&mut Vec<u8>) + Send>;

/// Nice value of the threads that work for what readers may want next: a tenth of the weight of a
/// program's thread (sched(7)).
const AHEAD: i32 = 10;
/// Nice value of the threads of the background.
const LOWEST: i32 = 19;

/// The threads. Dropping it ends them after their current work.
pub(crate) struct InflatePool {
    /// For what readers wait for.
    urgent: Threads,
    /// For what they will probably read next.
    ahead: Threads,
    background: Threads,
}

struct Threads {
    queue: Arc<WorkQueue>,
    /// Nice value of the process.
    usual: i32,
}

#[derive(Default)]
struct WorkQueue {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    waiting: BTreeMap<(Priority, u64), (SpanKey, Work)>,
    running: Vec<Running>,
    next: u64,
    stop: bool,
}

/// Work that a thread does.
struct Running {
    span: SpanKey,
    thread: Pid,
    /// Whether the thread got the usual priority for it.
    hastened: bool,
}

impl InflatePool {
    pub(crate) fn new(threads: usize) -> Self {
        Self {
            urgent: Threads::start("inflate", threads, None),
            ahead: Threads::start("ahead", threads, Some(AHEAD)),
            background: Threads::start("fill", threads, Some(LOWEST)),
        }
    }

    /// Queues work on a span; the most urgent is done first. The memory budget bounds the queue.
    pub(crate) fn submit(&self, priority: Priority, span: SpanKey, work: Work) {
        let threads = match priority {
            Priority::Demand => &self.urgent,
            Priority::Readahead | Priority::Profile => &self.ahead,
            Priority::Background => &self.background,
        };
        threads.submit(priority, span, work);
    }

    /// A reader waits for a span now: its work, if it has been submitted, is done as of that
    /// urgency.
    pub(crate) fn hasten(&self, span: SpanKey) {
        let waiting = [&self.ahead, &self.background]
            .into_iter()
            .find_map(|threads| threads.hasten(span));
        if let Some(work) = waiting {
            self.urgent.submit(Priority::Demand, span, work);
        }
    }
}

impl Threads {
    fn start(name: &str, threads: usize, nice: Option<i32>) -> Self {
        let queue = Arc::<WorkQueue>::default();
        let usual = nice_value();
        // Less priority than the process has, whatever that is.
        let nice = nice.map(|nice| nice.max(usual));
        for number in 0..threads {
            let for_thread = queue.clone();
            let started = std::thread::Builder::new()
                .name(format!("{name}-{number}"))
                .spawn(move || run(&for_thread, nice));
            if let Err(error) = started {
                // Without threads, `submit` does the work itself.
                tracing::error!(error = %error, "cannot start inflate thread");
                queue.state.lock().stop |= number == 0;
                break;
            }
        }
        Self { queue, usual }
    }

    fn submit(&self, priority: Priority, span: SpanKey, work: Work) {
        let mut state = self.queue.state.lock();
        if state.stop {
            drop(state);
            work(&mut Vec::new());
            return;
        }
        let key = (priority, state.next);
        state.next += 1;
        state.waiting.insert(key, (span, work));
        self.queue.wake.notify_one();
    }

    /// Takes the work on a span out of the queue, or gives the thread that does it the usual
    /// priority until it has done it.
    fn hasten(&self, span: SpanKey) -> Option<Work> {
        let mut state = self.queue.state.lock();
        let mut waiting = state.waiting.iter();
        if let Some((key, _)) = waiting.find(|(_, (of, _))| *of == span) {
            let key = *key;
            return state.waiting.remove(&key).map(|(_, work)| work);
        }
        let mut running = state.running.iter_mut();
        if let Some(running) = running.find(|running| running.span == span && !running.hastened) {
            running.hastened = true;
            set_nice(running.thread, self.usual);
        }
        None
    }
}

/// The nice value of this thread.
fn nice_value() -> i32 {
    let thread = rustix::thread::gettid();
    rustix::process::getpriority_process(Some(thread)).unwrap_or_default()
}

/// Sets the priority of a thread: on Linux it is one of threads, in spite of setpriority(2)'s
/// argument. Raising it needs a limit (RLIMIT_NICE) or a capability; without, the thread works on
/// with what it has.
fn set_nice(thread: Pid, nice: i32) {
    if let Err(error) = rustix::process::setpriority_process(Some(thread), nice) {
        tracing::debug!(%error, nice, "cannot set the priority of a thread");
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        let mut state = self.queue.state.lock();
        state.stop = true;
        // The guards of the dropped work answer its readers.
        let left = std::mem::take(&mut state.waiting);
        self.queue.wake.notify_all();
        drop(state);
        drop(left);
    }
}

fn run(queue: &WorkQueue, nice: Option<i32>) {
    let thread = rustix::thread::gettid();
    if let Some(nice) = nice {
        set_nice(thread, nice);
    }
    let mut buffer = Vec::new();
    let mut state = queue.state.lock();
    loop {
        if state.stop {
            return;
        }
        let Some((_, (span, work))) = state.waiting.pop_first() else {
            if buffer.capacity() == 0 {
                queue.wake.wait(&mut state);
            } else if queue.wake.wait_for(&mut state, KEEP_BUFFER).timed_out() {
                buffer = Vec::new();
            }
            continue;
        };
        state.running.push(Running {
            span,
            thread,
            hastened: false,
        });
        drop(state);
        if std::panic::catch_unwind(AssertUnwindSafe(|| work(&mut buffer))).is_err() {
            // The panic hook has logged it, and the work's guard has answered its readers.
            buffer = Vec::new();
        }
        if buffer.capacity() > LARGEST_KEPT {
            // The memory budget no longer counts it.
            buffer = Vec::new();
        }
        state = queue.state.lock();
        let mut running = state.running.iter();
        if let Some(at) = running.position(|running| running.thread == thread)
            && state.running.swap_remove(at).hastened
            && let Some(nice) = nice
        {
            set_nice(thread, nice);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::span_key::LayerId;

    const fn span(span: u32) -> SpanKey {
        SpanKey {
            layer: LayerId(1),
            span,
        }
    }

    /// Whether a thread here can get back what priority it gave up.
    fn may_raise() -> bool {
        let usual = nice_value();
        let raise = move || {
            let thread = rustix::thread::gettid();
            rustix::process::setpriority_process(Some(thread), usual + 1).unwrap();
            rustix::process::setpriority_process(Some(thread), usual).is_ok()
        };
        std::thread::spawn(raise).join().unwrap()
    }

    #[test]
    fn what_is_ahead_of_readers_is_in_order_and_a_panic_harms_no_other_read() {
        let pool = InflatePool::new(1);
        let (hold, held) = mpsc::channel::<()>();
        let (send, done) = mpsc::channel();
        let (begin, begun) = mpsc::channel();
        let wait = move |_: &mut Vec<u8>| {
            begin.send(()).unwrap();
            held.recv().unwrap();
        };
        pool.submit(Priority::Profile, span(0), Box::new(wait));
        begun.recv().unwrap();
        for (priority, name) in [
            (Priority::Profile, "profile"),
            (Priority::Readahead, "readahead"),
        ] {
            let send = send.clone();
            let work = Box::new(move |_: &mut Vec<u8>| send.send(name).unwrap());
            pool.submit(priority, span(1), work);
        }
        let panic = |_: &mut Vec<u8>| panic!("on purpose");
        pool.submit(Priority::Readahead, span(2), Box::new(panic));
        // Spans that a reader waits for do not wait for others.
        let demanded = send.clone();
        let work = move |_: &mut Vec<u8>| demanded.send("demand").unwrap();
        pool.submit(Priority::Demand, span(3), Box::new(work));
        assert_eq!(done.recv().unwrap(), "demand");
        hold.send(()).unwrap();
        let order: Vec<_> = (0..2).map(|_| done.recv().unwrap()).collect();
        assert_eq!(order, ["readahead", "profile"]);
    }

    #[test]
    fn what_no_reader_waits_for_has_threads_with_less_priority() {
        let pool = InflatePool::new(1);
        let (send, done) = mpsc::channel();
        let usual = nice_value();
        for (priority, expected) in [
            (Priority::Background, LOWEST.max(usual)),
            (Priority::Profile, AHEAD.max(usual)),
            (Priority::Readahead, AHEAD.max(usual)),
            (Priority::Demand, usual),
        ] {
            let send = send.clone();
            let work = Box::new(move |_: &mut Vec<u8>| send.send(nice_value()).unwrap());
            pool.submit(priority, span(0), work);
            assert_eq!(done.recv().unwrap(), expected, "{priority:?}");
        }
    }

    #[test]
    fn a_reader_hastens_what_waits_and_what_is_under_way() {
        let usual = nice_value();
        for (priority, nice) in [(Priority::Profile, AHEAD), (Priority::Background, LOWEST)] {
            let lowered = nice.max(usual);
            let hastened = if may_raise() { usual } else { lowered };
            let pool = InflatePool::new(1);
            let (hold, held) = mpsc::channel::<()>();
            let (send, done) = mpsc::channel();
            let tell = send.clone();
            let work = move |_: &mut Vec<u8>| {
                tell.send(("first", nice_value())).unwrap();
                held.recv().unwrap();
                tell.send(("first", nice_value())).unwrap();
            };
            pool.submit(priority, span(0), Box::new(work));
            assert_eq!(done.recv().unwrap(), ("first", lowered));
            for number in [1, 2] {
                let send = send.clone();
                let name = ["", "second", "third"][number as usize];
                let work = move |_: &mut Vec<u8>| send.send((name, nice_value())).unwrap();
                pool.submit(priority, span(number), Box::new(work));
            }
            // The one behind the other, while the thread is busy.
            pool.hasten(span(2));
            assert_eq!(done.recv().unwrap(), ("third", usual));
            pool.hasten(span(0));
            pool.hasten(span(0));
            // Of a span that is nowhere.
            pool.hasten(span(7));
            hold.send(()).unwrap();
            assert_eq!(done.recv().unwrap(), ("first", hastened));
            // The thread has its priority again.
            assert_eq!(done.recv().unwrap(), ("second", lowered));
        }
    }
}
