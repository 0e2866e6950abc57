//! One ranged request: its body is cut into spans as it arrives, and each is handed on at once.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes, BytesMut};
use futures::StreamExt as _;
use soci_registry::{ByteStream, Deadline, ErrorKind, RegistryError};
use soci_ztoc::{Span, SpanId};
use tokio::time::timeout;

use crate::ReadError;
use crate::core::Core;
use crate::layer::Layer;
use crate::schedule::{Broken, Request};
use crate::span_work::SpanWork;

/// How long a response that has brought everything may take to end, so that its connection can be
/// used again.
const END_OF_BODY: Duration = Duration::from_secs(1);

/// Why a request broke.
#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error("{0}")]
    Registry(#[from] RegistryError),
    #[error("nothing arrived for {} s", .0.as_secs_f32())]
    Stalled(Duration),
    #[error("the body ended before the last byte")]
    EndedEarly,
}

impl RequestError {
    fn is_transient(&self) -> bool {
        match self {
            Self::Registry(error) => error.is_transient(),
            // On another connection it may go on.
            Self::Stalled(_) | Self::EndedEarly => true,
        }
    }

    fn is_overload(&self) -> bool {
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
}

/// Tells the schedule that the request is over, whatever happens to its task.
struct Ending {
    core: Arc<Core>,
    layer: Arc<Layer>,
    request: Option<u64>,
    started: bool,
}

impl Ending {
    const fn start(&mut self) {
        self.started = true;
    }

    const fn disarm(&mut self) {
        self.request = None;
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if !self.started && !self.layer.is_closed() {
            // The runtime is gone: it takes no other task either.
            self.core.stop();
        }
        // Aborted because the layer was closed, or a panic.
        if let Some(request) = self.request.take() {
            let broken = Broken {
                transient: false,
                progress: false,
                error: &|_| ReadError::Abandoned,
            };
            self.core.ended(request, &self.layer, Some(broken));
        }
    }
}

/// Makes a request and hands on what it brings.
pub(crate) fn run(core: Arc<Core>, request: Request) -> impl Future<Output = ()> + Send {
    // Made before the task first runs: it may never do.
    let mut ending = Ending {
        core: core.clone(),
        layer: request.layer.clone(),
        request: Some(request.id),
        started: false,
    };
    async move {
        ending.start();
        let mut brought = 0;
        let result = receive(&core, &request, &mut brought).await;
        ending.disarm();
        core.note_retries(&request.layer);
        let Err(error) = result else {
            core.ended(request.id, &request.layer, None);
            return;
        };
        if error.is_overload() {
            core.schedule.lock().limit.overloaded(Instant::now());
        }
        let what = request.layer.source.describe();
        if let Some(held_back) = core.log_limit.pass() {
            tracing::warn!(blob = what, spans = ?request.spans, brought, error = %error, held_back, "a request for spans broke");
        }
        let broken = Broken {
            transient: error.is_transient(),
            progress: brought > 0,
            error: &|span| ReadError::Source {
                what: what.clone(),
                span,
                reason: error.to_string(),
            },
        };
        core.ended(request.id, &request.layer, Some(broken));
    }
}

async fn receive(
    core: &Arc<Core>,
    request: &Request,
    brought: &mut u32,
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
    let mut body = Body {
        stream: within(
            core,
            layer.source.stream_range(range.clone(), Deadline::far()),
        )
        .await??,
        arrived: Bytes::new(),
        position: range.start,
        last: None,
    };
    for id in request.spans.clone() {
        let Some(priority) = core.schedule.lock().receiving(request.id, id) else {
            // Cut off: somebody could not wait for this request to come so far.
            return Ok(());
        };
        let Some(span) = span_of(id) else {
            return Ok(());
        };
        let compressed = span.compressed.end.saturating_sub(span.compressed.start);
        let uncompressed = span
            .uncompressed
            .end
            .saturating_sub(span.uncompressed.start);
        let cost = compressed.saturating_add(uncompressed);
        let permit = core.memory(cost, priority, (layer.number, id)).await;
        let bytes = body.span(core, &span).await?;
        core.counters
            .of(request.priority)
            .bytes
            .fetch_add(compressed, Ordering::Relaxed);
        let Some(priority) = core.schedule.lock().arrived(request.id, id, compressed) else {
            return Ok(());
        };
        *brought += 1;
        SpanWork::new(core.clone(), layer.clone(), id, priority, permit).submit(bytes);
    }
    // Read to its end, so that the connection can be used again.
    let _ = timeout(END_OF_BODY, body.stream.next()).await;
    Ok(())
}

async fn within<T>(core: &Core, work: impl Future<Output = T>) -> Result<T, RequestError> {
    let stall = core.config.stall_timeout;
    timeout(stall, work)
        .await
        .map_err(|_| RequestError::Stalled(stall))
}

/// A body, and how far it has been cut into spans.
struct Body {
    stream: ByteStream,
    arrived: Bytes,
    /// Of the first byte that has not been given out, in the blob.
    position: u64,
    /// The byte before it: neighbours may share one.
    last: Option<u8>,
}

impl Body {
    /// The compressed bytes of the next span.
    async fn span(&mut self, core: &Core, span: &Span) -> Result<Bytes, RequestError> {
        let len = span.compressed.end.saturating_sub(span.compressed.start);
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let shared = self.last.filter(|_| span.compressed.start < self.position);
        if shared.is_none() {
            while self.arrived.is_empty() && len > 0 {
                self.arrived = self.next(core).await?;
            }
            // Mostly not copied.
            if self.arrived.len() >= len {
                return Ok(self.give(len));
            }
        }
        let mut bytes = BytesMut::with_capacity(len);
        bytes.extend(shared);
        while bytes.len() < len {
            if self.arrived.is_empty() {
                self.arrived = self.next(core).await?;
                continue;
            }
            let part = self.give(self.arrived.len().min(len - bytes.len()));
            bytes.extend_from_slice(&part);
        }
        Ok(bytes.freeze())
    }

    async fn next(&mut self, core: &Core) -> Result<Bytes, RequestError> {
        let next = within(core, self.stream.next()).await?;
        Ok(next.ok_or(RequestError::EndedEarly)??)
    }

    fn give(&mut self, len: usize) -> Bytes {
        let part = self.arrived.slice(..len);
        self.arrived.advance(len);
        self.position = self.position.saturating_add(len as u64);
        self.last = part.last().copied().or(self.last);
        part
    }
}
