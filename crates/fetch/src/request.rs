//! One ranged request: its body is cut into spans as it arrives, and each is passed on.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use soci_ztoc::{Span, SpanId};
use tokio::time::Instant;

use crate::body::{Body, Hurry};
use crate::context::Context;
use crate::priority::Priority;
use crate::request_error::RequestError;
use crate::schedule::Request;
use crate::served_layer::ServedLayer;
use crate::span_work::SpanWork;

/// A request for spans of a served layer.
pub(crate) type ServedRequest = Request<Arc<ServedLayer>>;

/// Makes a request and passes each span to `deliver` as it arrives. `brought` counts them.
pub(crate) async fn receive(
    context: &Context,
    request: &ServedRequest,
    brought: &mut u32,
    deliver: impl Fn(SpanWork, Bytes),
) -> Result<(), RequestError> {
    let layer = &request.layer;
    let span_of = |span| layer.spans.get(SpanId(span));
    let (Some(first), Some(last)) = (
        span_of(request.spans.start),
        request.spans.end.checked_sub(1).and_then(span_of),
    ) else {
        return Ok(());
    };
    let range = first.compressed.start..last.compressed.end;
    let deadline = request.deadline;
    let mut body = if in_halves(context, request, length(&range)) {
        let counters = context.counters.of(request.priority);
        counters.requests.fetch_add(1, Ordering::Relaxed);
        Body::open_halves(context, layer, request.id, range, deadline).await?
    } else {
        let hurry = match request.priority {
            Priority::Background => Hurry::None,
            _ => Hurry::Reader,
        };
        Body::open(context, layer, hurry, Some(request.id), range, deadline).await?
    };
    for id in request.spans.clone() {
        let receiving = context.schedule.lock().receiving(request.id, id);
        // Cut off: a reader could not wait for this request to get that far.
        let (Some(priority), Some(span)) = (receiving, span_of(id)) else {
            return Ok(());
        };
        let compressed = length(&span.compressed);
        let cost = compressed.saturating_add(length(&span.uncompressed));
        // Memory is taken once bytes are there: a silent origin takes none.
        body.begin(&span).await?;
        let waiting = Instant::now();
        let permit = context
            .memory(cost, priority, layer.key(id), request.origin)
            .await;
        body.pause(waiting.elapsed());
        let bytes = body.span(&span).await?;
        context
            .counters
            .of(request.priority)
            .bytes
            .fetch_add(compressed, Ordering::Relaxed);
        let arrived = context
            .schedule
            .lock()
            .arrived(request.id, id, compressed, Instant::now());
        let Some(priority) = arrived else {
            return Ok(());
        };
        *brought += 1;
        deliver(SpanWork::new(layer.clone(), id, priority, permit), bytes);
    }
    body.finish().await;
    Ok(())
}

/// Whether a reader gets its span sooner in two responses. Only for one span: the memory for it is
/// that of both halves.
fn in_halves(context: &Context, request: &ServedRequest, bytes: u64) -> bool {
    request.priority == Priority::Demand
        && request.spans.len() == 1
        && context.schedule.lock().halves_pay(request.layer.id, bytes)
}

/// Fetches one span alone.
pub(crate) async fn fetch_span(
    context: &Context,
    layer: &ServedLayer,
    span: &Span,
) -> Result<Bytes, RequestError> {
    let deadline = Instant::now() + context.config.read_timeout;
    let range = span.compressed.clone();
    let mut body = Body::open(context, layer, Hurry::Reader, None, range, deadline).await?;
    body.begin(span).await?;
    let bytes = body.span(span).await?;
    body.finish().await;
    Ok(bytes)
}

pub(crate) fn length(range: &Range<u64>) -> u64 {
    range.end.saturating_sub(range.start)
}
