//! One ranged request: its body is cut into spans as it arrives, and each is passed on.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use futures::StreamExt as _;
use soci_registry::{ByteStream, Deadline, ErrorKind, RegistryError};
use soci_ztoc::{Span, SpanId};
use tokio::time::{Instant, timeout, timeout_at};

use crate::ReadError;
use crate::context::Context;
use crate::read_error::Cause;
use crate::schedule::Request;
use crate::served_layer::ServedLayer;
use crate::span_work::SpanWork;

/// Longest time for the end of a body after its last byte, so that its connection can be reused.
const END_OF_BODY: Duration = Duration::from_secs(1);
/// A body that breaks after this many bytes is resumed, in bytes: on another connection, or from
/// another repository.
const HEADWAY: u64 = 64 << 10;

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
}

impl RequestError {
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Registry(error) => error.is_transient(),
            Self::Stalled(_) | Self::EndedEarly => true,
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
            Self::Stalled(_) => true,
            Self::EndedEarly => false,
        }
    }

    /// The error for the readers of spans that are missing because of this one.
    pub(crate) fn into_read_error(self, blob: String) -> impl Fn(u32) -> ReadError {
        let source: Cause = Arc::new(self);
        move |span| ReadError::Source {
            blob: blob.clone(),
            span,
            source: source.clone(),
        }
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
    let mut body = Body::open(context, layer, range, request.deadline).await?;
    for id in request.spans.clone() {
        let receiving = context.schedule.lock().receiving(request.id, id);
        // Cut off: a reader could not wait for this request to get that far.
        let (Some(priority), Some(span)) = (receiving, span_of(id)) else {
            return Ok(());
        };
        let compressed = length(&span.compressed);
        let cost = compressed.saturating_add(length(&span.uncompressed));
        let waiting = Instant::now();
        let permit = context.memory(cost, priority, layer.key(id)).await;
        // The registry is not to blame for waits for memory.
        body.deadline += waiting.elapsed();
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
    // Read to its end, so that the connection can be reused.
    let _ = timeout(END_OF_BODY, body.stream.next()).await;
    Ok(())
}

/// Fetches one span alone.
pub(crate) async fn fetch_span(
    context: &Context,
    layer: &ServedLayer,
    span: &Span,
) -> Result<Bytes, RequestError> {
    let deadline = Instant::now() + context.config.read_timeout;
    let mut body = Body::open(context, layer, span.compressed.clone(), deadline).await?;
    let bytes = body.span(span).await?;
    let _ = timeout(END_OF_BODY, body.stream.next()).await;
    Ok(bytes)
}

fn length(range: &Range<u64>) -> u64 {
    range.end.saturating_sub(range.start)
}

/// A body that is cut into spans.
struct Body<'a> {
    context: &'a Context,
    layer: &'a ServedLayer,
    stream: ByteStream,
    /// Moves on with each byte that arrives.
    deadline: Instant,
    /// Bytes since the stream was opened.
    since_open: u64,
    arrived: Bytes,
    /// Blob offsets from the first byte that has not been passed on to the end of the request.
    rest: Range<u64>,
    /// The byte before `rest`: neighbouring spans may share one.
    last: Option<u8>,
}

impl<'a> Body<'a> {
    async fn open(
        context: &'a Context,
        layer: &'a ServedLayer,
        rest: Range<u64>,
        deadline: Instant,
    ) -> Result<Self, RequestError> {
        Ok(Self {
            context,
            layer,
            stream: open_stream(context, layer, rest.clone(), deadline).await?,
            deadline,
            since_open: 0,
            arrived: Bytes::new(),
            rest,
            last: None,
        })
    }

    /// Returns the compressed bytes of the next span.
    async fn span(&mut self, span: &Span) -> Result<Bytes, RequestError> {
        let len = usize::try_from(length(&span.compressed)).unwrap_or(usize::MAX);
        let shared = self
            .last
            .filter(|_| span.compressed.start < self.rest.start);
        if shared.is_none() {
            while self.arrived.is_empty() && len > 0 {
                self.arrived = self.next().await?;
            }
            // Mostly not copied.
            if self.arrived.len() >= len {
                return Ok(self.take(len));
            }
        }
        let mut bytes = BytesMut::with_capacity(len);
        bytes.extend(shared);
        while bytes.len() < len {
            if self.arrived.is_empty() {
                self.arrived = self.next().await?;
                continue;
            }
            let part = self.take(self.arrived.len().min(len - bytes.len()));
            bytes.extend_from_slice(&part);
        }
        Ok(bytes.freeze())
    }

    /// Waits for more bytes. Resumes the body if it breaks after some headway.
    async fn next(&mut self) -> Result<Bytes, RequestError> {
        loop {
            let stalled = RequestError::Stalled(self.context.config.read_timeout);
            let error = match timeout_at(self.deadline, self.stream.next()).await {
                Ok(Some(Ok(bytes))) => {
                    self.context.activity.note_arrival();
                    self.since_open = self.since_open.saturating_add(bytes.len() as u64);
                    self.deadline = Instant::now() + self.context.config.read_timeout;
                    return Ok(bytes);
                }
                Ok(Some(Err(error))) => error.into(),
                Ok(None) => RequestError::EndedEarly,
                Err(_) => return Err(stalled),
            };
            if !error.is_transient() || self.since_open < HEADWAY {
                return Err(error);
            }
            tracing::debug!(%error, "resuming response body");
            self.stream =
                open_stream(self.context, self.layer, self.rest.clone(), self.deadline).await?;
            self.since_open = 0;
        }
    }

    fn take(&mut self, len: usize) -> Bytes {
        let part = self.arrived.slice(..len);
        self.arrived.advance(len);
        self.rest.start = self.rest.start.saturating_add(len as u64);
        self.last = part.last().copied().or(self.last);
        part
    }
}

async fn open_stream(
    context: &Context,
    layer: &ServedLayer,
    range: Range<u64>,
    deadline: Instant,
) -> Result<ByteStream, RequestError> {
    let stalled = RequestError::Stalled(context.config.read_timeout);
    if deadline <= Instant::now() {
        return Err(stalled);
    }
    let opened = layer.source.stream_range(range, Deadline::at(deadline));
    let stream = timeout_at(deadline, opened).await.map_err(|_| stalled)?;
    Ok(stream?)
}
