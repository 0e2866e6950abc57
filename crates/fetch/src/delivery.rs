//! Handing a span over: to its readers first, then to the store, then to the readers that joined in
//! between, so that no reader is left behind.

use crate::schedule::{Schedule, SpanLayout};
use crate::span_key::SpanKey;
use crate::sync::Mutex;

/// Answers all readers of an arrived span with `answer`, and stores it with `store` in between.
pub(crate) fn deliver<L: SpanLayout + Clone, W>(
    schedule: &Mutex<Schedule<L, W>>,
    key: SpanKey,
    answer: impl Fn(W),
    store: impl FnOnce(),
) {
    let waiters = schedule.lock().take_waiters(key);
    waiters.into_iter().for_each(&answer);
    store();
    loop {
        let late = schedule.lock().finish(key);
        let Some(late) = late else { return };
        late.into_iter().for_each(&answer);
    }
}
