//! The threads that verify and inflate spans: few, because the work is pure computing, and separate
//! from those of the runtime, so that requests continue.
//!
//! What no reader has requested has threads of its own at the lowest priority of the kernel: it gets
//! the processor time that is left, and what a reader waits for interrupts it.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::priority::Priority;

/// Idle time after which a thread frees its buffer.
const KEEP_BUFFER: Duration = Duration::from_secs(2);
/// Capacity in bytes above which a buffer is freed after its use.
const LARGEST_KEPT: usize = 16 << 20;

/// Work on a span. The buffer belongs to the thread and receives the uncompressed bytes.
pub(crate) type Work = Box<dyn FnOnce(&mut Vec<u8>) + Send>;

/// Nice value of the threads of the background.
const LOWEST: i32 = 19;

/// The threads. Dropping it ends them after their current work.
pub(crate) struct InflatePool {
    /// For what readers wait for, or soon will.
    urgent: Threads,
    background: Threads,
}

struct Threads {
    queue: Arc<WorkQueue>,
}

#[derive(Default)]
struct WorkQueue {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    waiting: BTreeMap<(Priority, u64), Work>,
    next: u64,
    stop: bool,
}

impl InflatePool {
    pub(crate) fn new(threads: usize) -> Self {
        Self {
            urgent: Threads::start("inflate", threads, None),
            background: Threads::start("fill", threads, Some(LOWEST)),
        }
    }

    /// Queues work; the most urgent is done first. The memory budget bounds the queue.
    pub(crate) fn submit(&self, priority: Priority, work: Work) {
        let threads = match priority {
            Priority::Background => &self.background,
            _ => &self.urgent,
        };
        threads.submit(priority, work);
    }
}

impl Threads {
    fn start(name: &str, threads: usize, nice: Option<i32>) -> Self {
        let queue = Arc::<WorkQueue>::default();
        for number in 0..threads {
            let for_thread = queue.clone();
            let started = std::thread::Builder::new()
                .name(format!("{name}-{number}"))
                .spawn(move || {
                    if let Some(nice) = nice {
                        be_nice(nice);
                    }
                    run(&for_thread);
                });
            if let Err(error) = started {
                // Without threads, `submit` does the work itself.
                tracing::error!(error = %error, "cannot start inflate thread");
                queue.state.lock().stop |= number == 0;
                break;
            }
        }
        Self { queue }
    }

    fn submit(&self, priority: Priority, work: Work) {
        let mut state = self.queue.state.lock();
        if state.stop {
            drop(state);
            work(&mut Vec::new());
            return;
        }
        let key = (priority, state.next);
        state.next += 1;
        state.waiting.insert(key, work);
        self.queue.wake.notify_one();
    }
}

/// Lowers the priority of this thread: on Linux it is one of threads, in spite of setpriority(2)'s
/// argument.
fn be_nice(nice: i32) {
    let thread = rustix::thread::gettid();
    if let Err(error) = rustix::process::setpriority_process(Some(thread), nice) {
        tracing::debug!(%error, "cannot lower the priority of a thread");
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

fn run(queue: &WorkQueue) {
    let mut buffer = Vec::new();
    let mut state = queue.state.lock();
    loop {
        if state.stop {
            return;
        }
        let Some((_, work)) = state.waiting.pop_first() else {
            if buffer.capacity() == 0 {
                queue.wake.wait(&mut state);
            } else if queue.wake.wait_for(&mut state, KEEP_BUFFER).timed_out() {
                buffer = Vec::new();
            }
            continue;
        };
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
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn demand_overtakes_what_is_ahead_of_readers_and_a_panic_harms_no_other_read() {
        let pool = InflatePool::new(1);
        let (hold, held) = mpsc::channel::<()>();
        let (send, done) = mpsc::channel();
        pool.submit(Priority::Profile, Box::new(move |_| held.recv().unwrap()));
        for (priority, name) in [
            (Priority::Profile, "profile"),
            (Priority::Readahead, "readahead"),
            (Priority::Demand, "demand"),
        ] {
            let send = send.clone();
            pool.submit(priority, Box::new(move |_| send.send(name).unwrap()));
        }
        pool.submit(Priority::Demand, Box::new(|_| panic!("on purpose")));
        hold.send(()).unwrap();
        let order: Vec<_> = (0..3).map(|_| done.recv().unwrap()).collect();
        assert_eq!(order, ["demand", "readahead", "profile"]);
    }

    #[test]
    fn the_background_has_threads_of_its_own_that_the_kernel_puts_last() {
        let pool = InflatePool::new(1);
        let (hold, held) = mpsc::channel::<()>();
        let (send, done) = mpsc::channel();
        let nice = || {
            let thread = rustix::thread::gettid();
            rustix::process::getpriority_process(Some(thread)).unwrap()
        };
        let tell = send.clone();
        let background = move |_: &mut Vec<u8>| {
            tell.send(nice()).unwrap();
            held.recv().unwrap();
        };
        pool.submit(Priority::Background, Box::new(background));
        assert_eq!(done.recv().unwrap(), LOWEST);
        let before = nice();
        pool.submit(
            Priority::Demand,
            Box::new(move |_| send.send(nice()).unwrap()),
        );
        assert_eq!(done.recv().unwrap(), before);
        hold.send(()).unwrap();
    }
}
