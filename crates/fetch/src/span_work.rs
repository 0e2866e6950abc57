//! What happens to a span that has arrived: checked, inflated, given to who waits, stored.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use soci_registry::Deadline;
use soci_ztoc::{SpanError, SpanId};
use tokio::time::timeout;

use crate::ReadError;
use crate::budget::Permit;
use crate::core::Core;
use crate::layer::Layer;
use crate::priority::Priority;

/// The work on one span. Dropped before its end, it tells those who wait.
pub(crate) struct SpanWork {
    core: Arc<Core>,
    layer: Arc<Layer>,
    span: u32,
    priority: Priority,
    permit: Option<Permit>,
    /// How often it has been fetched again because its bytes did not match.
    again: u32,
    over: bool,
}

impl Drop for SpanWork {
    fn drop(&mut self) {
        if !self.over {
            self.fail(&ReadError::Abandoned);
        }
    }
}

impl SpanWork {
    pub(crate) fn new(
        core: Arc<Core>,
        layer: Arc<Layer>,
        span: u32,
        priority: Priority,
        permit: Permit,
    ) -> Self {
        Self {
            core,
            layer,
            span,
            priority,
            permit: Some(permit),
            again: 0,
            over: false,
        }
    }

    /// Hands the span to the threads that inflate.
    pub(crate) fn submit(self, compressed: Bytes) {
        let (core, priority) = (self.core.clone(), self.priority);
        core.pool.submit(
            priority,
            Box::new(move |buffer| self.run(compressed, buffer)),
        );
    }

    fn run(mut self, compressed: Bytes, buffer: &mut Vec<u8>) {
        if self.layer.is_closed() {
            self.fail(&ReadError::Closed);
            return;
        }
        let id = SpanId(self.span);
        let window = match self.layer.stored.window(id) {
            Ok(window) => window,
            Err(error) => return self.fail(&ReadError::Store(error.to_string())),
        };
        match self.layer.spans.extract(id, &compressed, &window, buffer) {
            Ok(()) => {
                drop((compressed, window));
                self.deliver(buffer);
            }
            Err(error) => {
                drop(compressed);
                self.mismatch(&error);
            }
        }
    }

    fn deliver(&mut self, bytes: &[u8]) {
        let counters = &self.core.counters;
        counters.spans_verified.fetch_add(1, Ordering::Relaxed);
        counters
            .of(self.priority)
            .spans
            .fetch_add(1, Ordering::Relaxed);
        if self.priority == Priority::Background {
            self.layer.filling.fetched();
        }
        let at = self
            .layer
            .spans
            .get(SpanId(self.span))
            .map_or(0, |span| span.uncompressed.start);
        // Readers first, the disk afterwards.
        let waiters = self
            .core
            .schedule
            .lock()
            .take_waiters(self.layer.number, self.span);
        for waiter in waiters {
            waiter.fill(at, bytes);
            waiter.arrived();
        }
        match self.layer.stored.write_span(SpanId(self.span), bytes) {
            Ok(()) => self.layer.clear_error(),
            Err(error) => {
                counters.store_failures.fetch_add(1, Ordering::Relaxed);
                self.core.store_failed();
                if self.layer.set_error(error.to_string())
                    && let Some(held_back) = self.core.log_limit.pass()
                {
                    tracing::error!(layer = %self.layer.stored.digest(), error = %error, held_back, "spans are served but cannot be stored");
                }
                if let Some(permit) = self.permit.take() {
                    self.core
                        .unsaved
                        .keep(&self.layer, self.span, bytes, permit);
                    if self.core.budget.is_waited_for() {
                        self.core.unsaved.clear();
                    }
                }
            }
        }
        loop {
            let late = self
                .core
                .schedule
                .lock()
                .finish(self.layer.number, self.span);
            let Some(late) = late else { break };
            for waiter in late {
                waiter.fill(at, bytes);
                waiter.arrived();
            }
        }
        self.over = true;
    }

    fn mismatch(mut self, error: &SpanError) {
        let core = self.core.clone();
        core.counters
            .verification_failures
            .fetch_add(1, Ordering::Relaxed);
        let what = self.layer.source.describe();
        if let Some(held_back) = core.log_limit.pass() {
            tracing::warn!(blob = what, error = %error, again = self.again, held_back, "a span does not match");
        }
        let may_help = matches!(error, SpanError::Digest { .. } | SpanError::Length { .. });
        if may_help && self.again < core.config.max_span_verification_retries.max(1) {
            self.again += 1;
            core.runtime.clone().spawn(self.fetch_again());
            return;
        }
        self.fail(&ReadError::Verification {
            what,
            span: self.span,
            reason: error.to_string(),
        });
    }

    /// Fetches just this span once more.
    async fn fetch_again(mut self) {
        let Some(span) = self.layer.spans.get(SpanId(self.span)) else {
            return;
        };
        let counters = self.core.counters.of(self.priority);
        counters.requests.fetch_add(1, Ordering::Relaxed);
        let stall = self.core.config.stall_timeout;
        let reason = match timeout(
            stall,
            self.layer
                .source
                .read_range(span.compressed, Deadline::far()),
        )
        .await
        {
            Ok(Ok(bytes)) => {
                counters
                    .bytes
                    .fetch_add(bytes.len() as u64, Ordering::Relaxed);
                return self.submit(bytes);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("nothing arrived for {} s", stall.as_secs_f32()),
        };
        self.fail(&ReadError::Source {
            what: self.layer.source.describe(),
            span: self.span,
            reason,
        });
    }

    fn fail(&mut self, error: &ReadError) {
        self.over = true;
        if self.priority == Priority::Background && !self.layer.is_closed() {
            self.layer.filling.failed();
        }
        self.core.fail(&self.layer, self.span, error);
    }
}
