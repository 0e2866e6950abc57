//! A panic is logged as a line of JSON like everything else, level `panic`.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::time::Duration;

use crate::log::{PANIC, flush_within};

/// Longest wait for the reader of stderr: the panic may be one that the process survives.
const PATIENCE: Duration = Duration::from_millis(200);

/// Replaces the panic hook by one that logs message, place and thread; with `RUST_BACKTRACE` set
/// also the backtrace. The panic itself continues.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let message = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("(no message)");
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current()
            .name()
            .unwrap_or("(unnamed)")
            .to_owned();
        let backtrace = Backtrace::capture();
        if backtrace.status() == BacktraceStatus::Captured {
            tracing::error!(target: PANIC, place, thread, %backtrace, "panic: {message}");
        } else {
            tracing::error!(target: PANIC, place, thread, "panic: {message}");
        }
        // It may end the process.
        flush_within(PATIENCE);
    }));
}
