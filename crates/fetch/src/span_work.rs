//! Work on a span that has arrived: verified, inflated, handed to its readers, stored.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use soci_store::StoreError;
use soci_ztoc::{SpanError, SpanId};

use crate::budget::Permit;
use crate::context::Context;
use crate::delivery::deliver;
use crate::priority::Priority;
use crate::served_layer::ServedLayer;
use crate::{LayerFailure, ReadError};

/// Work on one span, with the memory that it uses.
pub(crate) struct SpanWork {
    pub(crate) layer: Arc<ServedLayer>,
    pub(crate) span: u32,
    pub(crate) priority: Priority,
    permit: Option<Permit>,
    /// Number of times that it was fetched again because its bytes did not match.
    refetches: u32,
    /// The tracing span of its request.
    pub(crate) trace: tracing::Span,
}

/// Why a span cannot be delivered.
pub(crate) enum SpanFailure {
    /// The bytes do not match, and fetching them again may help.
    Refetch,
    /// No further attempt.
    Final(ReadError),
}

impl SpanWork {
    pub(crate) fn new(
        layer: Arc<ServedLayer>,
        span: u32,
        priority: Priority,
        permit: Permit,
    ) -> Self {
        Self {
            layer,
            span,
            priority,
            permit: Some(permit),
            refetches: 0,
            trace: tracing::Span::current(),
        }
    }

    /// Verifies and inflates the span into `buffer`, answers its readers and stores it.
    pub(crate) fn run(
        &mut self,
        context: &Context,
        compressed: Bytes,
        buffer: &mut Vec<u8>,
    ) -> Result<(), SpanFailure> {
        if self.layer.is_closed() {
            return Err(SpanFailure::Final(ReadError::Closed));
        }
        let id = SpanId(self.span);
        let window = self.layer.stored.window(id);
        let window = window.map_err(|error| SpanFailure::Final(ReadError::store(error)))?;
        let extracted = self.layer.spans.extract(id, &compressed, &window, buffer);
        drop((compressed, window));
        extracted.map_err(|error| self.mismatch(context, error))?;
        self.deliver(context, buffer);
        Ok(())
    }

    fn deliver(&mut self, context: &Context, bytes: &[u8]) {
        let counters = &context.counters;
        counters.spans_verified.fetch_add(1, Ordering::Relaxed);
        self.layer.stored.standing().note_source(true);
        counters
            .of(self.priority)
            .spans
            .fetch_add(1, Ordering::Relaxed);
        if self.priority.is_background() {
            self.layer.fill_progress.fetched();
        }
        let at = self
            .layer
            .uncompressed(self.span)
            .map_or(0, |range| range.start);
        deliver(
            &context.schedule,
            self.layer.key(self.span),
            |waiter| {
                waiter.fill(at, bytes);
                waiter.arrived();
            },
            || {
                store(
                    context,
                    &self.layer,
                    self.span,
                    bytes,
                    self.priority,
                    &mut self.permit,
                )
            },
        );
    }

    fn mismatch(&mut self, context: &Context, error: SpanError) -> SpanFailure {
        context
            .counters
            .verification_failures
            .fetch_add(1, Ordering::Relaxed);
        if let Some(held_back) = context.log_limit.pass() {
            tracing::warn!(error = %error, refetches = self.refetches, held_back, "span verification failed");
        }
        self.layer.source.served_damage();
        let may_help = matches!(error, SpanError::Digest { .. } | SpanError::Length { .. });
        if may_help && self.refetches < context.config.max_span_verification_retries.max(1) {
            self.refetches += 1;
            return SpanFailure::Refetch;
        }
        SpanFailure::Final(ReadError::Verification {
            blob: self.layer.source.describe(),
            span: self.span,
            source: Arc::new(error),
        })
    }
}

/// Stores a span; keeps it with its permit if that fails.
fn store(
    context: &Context,
    layer: &ServedLayer,
    span: u32,
    bytes: &[u8],
    priority: Priority,
    permit: &mut Option<Permit>,
) {
    let stored = match priority {
        Priority::Demand | Priority::Readahead => layer.stored.write_span(SpanId(span), bytes),
        _ => layer.stored.write_ahead(SpanId(span), bytes),
    };
    let Err(error) = stored else {
        layer.clear_error();
        return;
    };
    context
        .counters
        .store_failures
        .fetch_add(1, Ordering::Relaxed);
    context.activity.note_store_failure();
    if layer.set_error(LayerFailure::local(&error))
        && let Some(held_back) = context.log_limit.pass()
    {
        let digest = layer.stored.digest();
        match error {
            // As the operator wants it.
            StoreError::OverLimit { .. } => {
                tracing::warn!(layer = %digest, error = %error, held_back, "cannot store span");
            }
            error => {
                tracing::error!(layer = %digest, error = %error, held_back, "cannot store span");
            }
        }
    }
    if let Some(permit) = permit.take() {
        context.unsaved.keep(layer, span, bytes, permit);
        if context.budget.has_waiters() {
            context.unsaved.clear();
        }
    }
}
