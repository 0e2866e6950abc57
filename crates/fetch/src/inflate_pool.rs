//! The threads that check and inflate spans: few, because the work is pure computing, and apart
//! from the runtime's, so that requests go on meanwhile.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::priority::Priority;

/// A thread that has had nothing to do for this long gives its buffer back.
const KEEP_BUFFER: Duration = Duration::from_secs(2);
/// A larger buffer is given back at once, in bytes.
const LARGEST_KEPT: usize = 16 << 20;

/// Work on a span; the buffer is the thread's own, for the uncompressed bytes.
pub(crate) type Work = Box<dyn FnOnce(&mut Vec<u8>) + Send>;

/// The threads. They stop, after what they are doing, when this is dropped.
pub(crate) struct InflatePool {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    threads: usize,
}

#[derive(Default)]
struct State {
    queue: BTreeMap<(Priority, u64), Work>,
    next: u64,
    in_background: usize,
    stop: bool,
}

impl InflatePool {
    pub(crate) fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            wake: Condvar::new(),
            threads,
        });
        for number in 0..threads {
            let for_thread = shared.clone();
            let started = std::thread::Builder::new()
                .name(format!("inflate-{number}"))
                .spawn(move || run(&for_thread));
            if let Err(error) = started {
                // Work that no thread takes is done by who brings it.
                tracing::error!(error = %error, "cannot start a thread for inflating");
                shared.state.lock().stop |= number == 0;
                break;
            }
        }
        Self { shared }
    }

    /// Has the work done soon, the most urgent first. The queue is bounded by the memory budget.
    pub(crate) fn submit(&self, priority: Priority, work: Work) {
        let mut state = self.shared.state.lock();
        if state.stop {
            drop(state);
            work(&mut Vec::new());
            return;
        }
        let key = (priority, state.next);
        state.next += 1;
        state.queue.insert(key, work);
        self.shared.wake.notify_one();
    }
}

impl Drop for InflatePool {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.stop = true;
        // Their guards answer who waits.
        let left = std::mem::take(&mut state.queue);
        self.shared.wake.notify_all();
        drop(state);
        drop(left);
    }
}

fn run(shared: &Shared) {
    let mut buffer = Vec::new();
    // One thread at least is always free for what is more urgent than the background.
    let most_in_background = shared.threads.saturating_sub(1).max(1);
    let mut state = shared.state.lock();
    loop {
        if state.stop {
            return;
        }
        let next = state.queue.first_key_value().map(|(key, _)| *key);
        let allowed = next.filter(|(priority, _)| {
            *priority != Priority::Background || state.in_background < most_in_background
        });
        let Some((key, work)) = allowed.and_then(|key| Some((key, state.queue.remove(&key)?)))
        else {
            if buffer.capacity() == 0 {
                shared.wake.wait(&mut state);
            } else if shared.wake.wait_for(&mut state, KEEP_BUFFER).timed_out() {
                buffer = Vec::new();
            }
            continue;
        };
        let in_background = usize::from(key.0 == Priority::Background);
        state.in_background += in_background;
        drop(state);
        if std::panic::catch_unwind(AssertUnwindSafe(|| work(&mut buffer))).is_err() {
            // The panic hook has reported it, and the work's guard has answered.
            buffer = Vec::new();
        }
        if buffer.capacity() > LARGEST_KEPT {
            // It is not in the memory budget any more.
            buffer = Vec::new();
        }
        state = shared.state.lock();
        state.in_background -= in_background;
        if in_background > 0 {
            shared.wake.notify_one();
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
        let (tell, told) = mpsc::channel();
        pool.submit(
            Priority::Background,
            Box::new(move |_| held.recv().unwrap()),
        );
        for (priority, name) in [
            (Priority::Background, "background"),
            (Priority::Readahead, "readahead"),
            (Priority::Demand, "demand"),
        ] {
            let tell = tell.clone();
            pool.submit(priority, Box::new(move |_| tell.send(name).unwrap()));
        }
        pool.submit(Priority::Demand, Box::new(|_| panic!("on purpose")));
        hold.send(()).unwrap();
        let order: Vec<_> = (0..3).map(|_| told.recv().unwrap()).collect();
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
        let (tell, told) = mpsc::channel();
        pool.submit(Priority::Demand, Box::new(move |_| tell.send(()).unwrap()));
        told.recv().unwrap();
        hold.send(()).unwrap();
        hold.send(()).unwrap();
    }
}
