//! The circuit of one origin: opens after failures in a row, and closes with the first answer.
//!
//! While it is open, layers that failed are not fetched: their readers get the last error
//! immediately. After a pause one request probes the origin; the pause grows to a few seconds only,
//! so that reads work again soon after the origin does.

use std::time::Duration;

use tokio::time::Instant;

use super::effect::RequestId;
use crate::read_error::Cause;

/// Failures in a row that open a circuit.
pub(super) const FAILURES: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The circuit of an origin.
#[derive(Debug, Default)]
pub(super) struct Circuit {
    failures: u32,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    error: Cause,
    pause: Duration,
    probe_at: Instant,
    probe: Option<RequestId>,
}

impl Circuit {
    /// The error for readers of layers that failed, while the circuit is open and no probe is due.
    pub(super) fn refusal(&self, now: Instant) -> Option<&Cause> {
        let open = self.open.as_ref()?;
        (now < open.probe_at || open.probe.is_some()).then_some(&open.error)
    }

    /// The error that keeps the circuit open.
    pub(super) fn error(&self) -> Option<&Cause> {
        self.open.as_ref().map(|open| &open.error)
    }

    pub(super) const fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Notes the request that probes the origin.
    pub(super) const fn probes(&mut self, request: RequestId) {
        if let Some(open) = &mut self.open {
            open.probe = Some(request);
        }
    }

    /// Notes the end of a request, whatever its result.
    pub(super) fn ended(&mut self, request: RequestId) {
        if let Some(open) = &mut self.open
            && open.probe == Some(request)
        {
            open.probe = None;
        }
    }

    /// Notes a failure; returns the number of failures in a row if it opened the circuit.
    pub(super) fn failed(&mut self, error: Cause, now: Instant) -> Option<u32> {
        self.failures = self.failures.saturating_add(1);
        if let Some(open) = &mut self.open {
            if now >= open.probe_at {
                open.pause = open.pause.saturating_mul(2).min(LONGEST_PAUSE);
                open.probe_at = now + open.pause;
            }
            open.error = error;
            return None;
        }
        if self.failures < FAILURES {
            return None;
        }
        self.open = Some(Open {
            error,
            pause: FIRST_PAUSE,
            probe_at: now + FIRST_PAUSE,
            probe: None,
        });
        Some(self.failures)
    }

    /// Notes an answer; `true` if it closed the circuit.
    pub(super) fn answered(&mut self) -> bool {
        self.failures = 0;
        self.open.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn error() -> Cause {
        Arc::new(std::io::Error::other("no route"))
    }

    #[test]
    fn it_opens_after_failures_in_a_row_and_is_probed_within_seconds() {
        let mut now = Instant::now();
        let mut circuit = Circuit::default();
        for _ in 1..FAILURES {
            assert_eq!(circuit.failed(error(), now), None);
        }
        assert!(!circuit.answered());
        for _ in 1..FAILURES {
            assert_eq!(circuit.failed(error(), now), None);
        }
        assert_eq!(circuit.failed(error(), now), Some(FAILURES));
        for number in 0..10 {
            assert!(circuit.refusal(now).is_some());
            now += LONGEST_PAUSE;
            assert!(circuit.refusal(now).is_none());
            let probe = RequestId(number);
            circuit.probes(probe);
            assert!(circuit.refusal(now).is_some());
            circuit.ended(probe);
            circuit.failed(error(), now);
        }
        // Late failures of requests from before do not put off the probe.
        circuit.failed(error(), now + FIRST_PAUSE);
        assert!(circuit.refusal(now + LONGEST_PAUSE).is_none());
        assert!(circuit.answered());
        assert!(circuit.refusal(now).is_none());
    }
}
