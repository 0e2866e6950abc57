//! The threads that verify and inflate spans: few, because the work is pure computing, and separate
//! from those of the runtime, so that requests continue.

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

/// The threads. Dropping it ends them after their current work.
pub(crate) struct InflatePool {
    queue: Arc<WorkQueue>,
}

struct WorkQueue {
    state: Mutex<State>,
    wake: Condvar,
    threads: usize,
}

#[derive(Default)]
struct State {
    waiting: BTreeMap<(Priority, u64), Work>,
    next: u64,
    in_background: usize,
    stop: bool,
}

impl InflatePool {
    pub(crate) fn new(threads: usize) -> Self {
        let queue = Arc::new(WorkQueue {
            state: Mutex::default(),
            wake: Condvar::new(),
            threads,
        });
        for number in 0..threads {
            let for_thread = queue.clone();
            let started = std::thread::Builder::new()
                .name(format!("inflate-{number}"))
                .spawn(move || run(&for_thread));
            if let Err(error) = started {
                // Without threads, `submit` does the work itself.
                tracing::error!(error = %error, "cannot start inflate thread");
                queue.state.lock().stop |= number == 0;
                break;
            }
        }
        Self { queue }
    }

    /// Queues work; the most urgent is done first. The memory budget bounds the queue.
    pub(crate) fn submit(&self, priority: Priority, work: Work) {
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

impl Drop for InflatePool {
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
    // At least one thread stays free of background work.
    let most_in_background = queue.threads.saturating_sub(1).max(1);
    let mut state = queue.state.lock();
    loop {
        if state.stop {
            return;
        }
        let next = state.waiting.first_key_value().map(|(key, _)| *key);
        let allowed = next.filter(|(priority, _)| {
            *priority != Priority::Background || state.in_background < most_in_background
        });
        let Some((key, work)) = allowed.and_then(|key| Some((key, state.waiting.remove(&key)?)))
        else {
            if buffer.capacity() == 0 {
                queue.wake.wait(&mut state);
            } else if queue.wake.wait_for(&mut state, KEEP_BUFFER).timed_out() {
                buffer = Vec::new();
            }
            continue;
        };
        let in_background = usize::from(key.0 == Priority::Background);
        state.in_background += in_background;
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
        state.in_background -= in_background;
        if in_background > 0 {
            queue.wake.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn demand_overtakes_the_background_and_a_panic_harms_nobody() {
        let pool = InflatePool::new(1);
        let (hold, held) = mpsc::channel::<()>();
        let (send, done) = mpsc::channel();
        pool.submit(
            Priority::Background,
            Box::new(move |_| held.recv().unwrap()),
        );
        for (priority, name) in [
            (Priority::Background, "background"),
            (Priority::Readahead, "readahead"),
            (Priority::Demand, "demand"),
        ] {
            let send = send.clone();
            pool.submit(priority, Box::new(move |_| send.send(name).unwrap()));
        }
        pool.submit(Priority::Demand, Box::new(|_| panic!("on purpose")));
        hold.send(()).unwrap();
        let order: Vec<_> = (0..3).map(|_| done.recv().unwrap()).collect();
        assert_eq!(order, ["demand", "readahead", "background"]);
    }

    #[test]
    fn a_thread_is_kept_free_of_background_work() {
        let pool = InflatePool::new(2);
        let (hold, held) = mpsc::channel::<()>();
        let held = Arc::new(Mutex::new(held));
        for _ in 0..2 {
            let held = held.clone();
            pool.submit(
                Priority::Background,
                Box::new(move |_| held.lock().recv().unwrap()),
            );
        }
        let (send, done) = mpsc::channel();
        pool.submit(Priority::Demand, Box::new(move |_| send.send(()).unwrap()));
        done.recv().unwrap();
        hold.send(()).unwrap();
        hold.send(()).unwrap();
    }
}
