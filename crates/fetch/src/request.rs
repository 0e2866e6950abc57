//! One ranged request: its body is cut into spans as it arrives, and each is passed on.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use soci_registry::{ErrorKind, RegistryError};
use soci_ztoc::{Span, SpanId};
use tokio::time::Instant;

use crate::ReadError;
use crate::body::Body;
use crate::context::Context;
use crate::pace::FLOOR;
use crate::read_error::Cause;
use crate::schedule::{Health, Request};
use crate::served_layer::ServedLayer;
use crate::span_work::SpanWork;

/// A request for spans of a served layer.
pub(crate) type LayerRequest = Request<Arc<ServedLayer>>;

/// An error of a request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error("nothing arrived for {} s", .0.as_secs_f32())]
    Stalled(Duration),
    #[error("the body ended before its last byte")]
    EndedEarly,
    #[error("less than {} KiB/s arrived for {} s", FLOOR >> 10, .0.as_secs_f32())]
    TooSlow(Duration),
}

impl RequestError {
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Registry(error) => error.is_transient(),
            Self::Stalled(_) | Self::EndedEarly | Self::TooSlow(_) => true,
        }
    }

    pub(crate) fn is_overload(&self) -> bool {
        match self {
            Self::Registry(error) => {
                matches!(
                    error.kind(),
                    ErrorKind::TooManyRequests | ErrorKind::Timeout
                )
            }
            Self::Stalled(_) | Self::TooSlow(_) => true,
            Self::EndedEarly => false,
        }
    }

    /// What the error says about the origin. Refusals are answers: they concern the blob.
    pub(crate) fn health(&self) -> fn(&Cause) -> Health {
        let failing = |cause: &Cause| Health::Failing(cause.clone());
        let error = match self {
            Self::Registry(error) => error,
            Self::Stalled(_) | Self::EndedEarly | Self::TooSlow(_) => return failing,
        };
        match error.kind() {
            ErrorKind::Timeout
            | ErrorKind::Unreachable
            | ErrorKind::ServerError
            | ErrorKind::BadBody => failing,
            _ if error.status().is_some() => |_| Health::Answering,
            _ => |_| Health::Unknown,
        }
    }
}

/// The error for the readers of spans that are missing because of a request's error.
pub(crate) fn read_error(source: Cause, blob: String) -> impl Fn(u32) -> ReadError {
    move |span| ReadError::Source {
        blob: blob.clone(),
        span,
        source: source.clone(),
    }
}

/// Makes a request and passes each span to `deliver` as it arrives. `brought` counts them.
pub(crate) async fn receive(
    context: &Context,
    request: &LayerRequest,
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
    let mut body = Body::open(context, layer, Some(request.id), range, request.deadline).await?;
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

/// Fetches one span alone.
pub(crate) async fn fetch_span(
    context: &Context,
    layer: &ServedLayer,
    span: &Span,
) -> Result<Bytes, RequestError> {
    let deadline = Instant::now() + context.config.read_timeout;
    let mut body = Body::open(context, layer, None, span.compressed.clone(), deadline).await?;
    body.begin(span).await?;
    let bytes = body.span(span).await?;
    body.finish().await;
    Ok(bytes)
}

pub(crate) fn length(range: &Range<u64>) -> u64 {
    range.end.saturating_sub(range.start)
}
