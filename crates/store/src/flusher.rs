//! The thread that makes written spans durable, some at a time.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::StoreError;
use crate::store_state::StoreState;

/// This much that is not durable is flushed without waiting any longer.
const FLUSH_BYTES: u64 = 64 << 20;

/// The thread; stops, after flushing, when dropped.
#[derive(Debug)]
pub(crate) struct Flusher {
    shared: Arc<StoreState>,
    thread: Option<JoinHandle<()>>,
}

impl Flusher {
    pub(crate) fn start(shared: Arc<StoreState>, interval: Duration) -> std::io::Result<Self> {
        let for_thread = shared.clone();
        let thread = std::thread::Builder::new()
            .name("store-flush".to_owned())
            .spawn(move || run(&for_thread, interval))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.shared.dirty.lock().stop = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported by the panic hook.
            let _ = thread.join();
        }
    }
}

fn run(shared: &StoreState, interval: Duration) {
    let mut complaint = Complaint::default();
    loop {
        let (layers, stop) = {
            let mut dirty = shared.dirty.lock();
            while dirty.layers.is_empty() && !dirty.stop {
                shared.wake.wait(&mut dirty);
            }
            let until = Instant::now() + interval;
            while dirty.bytes < FLUSH_BYTES && !dirty.stop {
                if shared.wake.wait_until(&mut dirty, until).timed_out() {
                    break;
                }
            }
            dirty.bytes = 0;
            (std::mem::take(&mut dirty.layers), dirty.stop)
        };
        for layer in layers.values() {
            match layer.sync() {
                Ok(()) => complaint.clear(),
                Err(error) => complaint.say(&error),
            }
        }
        if stop {
            return;
        }
    }
}

/// Logs an error once, not at every repetition.
#[derive(Default)]
struct Complaint(Option<String>);

impl Complaint {
    fn say(&mut self, error: &StoreError) {
        let text = error.to_string();
        if self.0.as_ref() != Some(&text) {
            tracing::error!(error = %text, "spans are not durable: after a restart they are fetched again");
            self.0 = Some(text);
        }
    }

    fn clear(&mut self) {
        self.0 = None;
    }
}
