//! The body of a response, cut into spans. Broken bodies are resumed, and slow ones requested again.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use futures::StreamExt as _;
use soci_registry::{ByteStream, Deadline};
use soci_ztoc::Span;
use tokio::time::{Instant, timeout, timeout_at};

use crate::context::Context;
use crate::pace::{FLOOR, Pace};
use crate::request::length;
use crate::request_error::RequestError;
use crate::schedule::RequestId;
use crate::served_layer::ServedLayer;

/// Longest time for the end of a body after its last byte, so that its connection can be reused.
const END_OF_BODY: Duration = Duration::from_secs(1);
/// A body that breaks after this many bytes is resumed, in bytes: on another connection, or from
/// another repository.
const HEADWAY: u64 = 64 << 10;
/// Bytes of a span that are taken from the connection before its memory is granted.
const FIRST_BYTES: usize = 64 << 10;
/// How often the schedule is notified that bytes arrive.
const NOTE_EVERY: Duration = Duration::from_millis(100);

/// Whether a reader waits for a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hurry {
    /// A server that has too many requests is asked again.
    Reader,
    /// It is not.
    None,
}

/// A body that is cut into spans.
pub(crate) struct Body<'a> {
    context: &'a Context,
    layer: &'a ServedLayer,
    hurry: Hurry,
    /// The request of the schedule; `None` if a span is fetched again.
    request: Option<RequestId>,
    stream: ByteStream,
    /// End of the wait for bytes. Moves on with each byte that arrives.
    deadline: Instant,
    /// When the current span must be complete, however steadily its bytes arrive.
    span_deadline: Instant,
    pace: Pace,
    noted: Option<Instant>,
    /// Bytes of which the schedule has not been notified.
    unnoted: u64,
    /// Bytes since the stream was opened.
    since_open: u64,
    /// Pieces that have not been passed on, none of them empty.
    arrived: VecDeque<Bytes>,
    /// Blob offsets from the first byte that has not been passed on to the end of the request.
    rest: Range<u64>,
    /// The byte before `rest`: neighbouring spans may share one.
    last: Option<u8>,
}

impl<'a> Body<'a> {
    pub(crate) async fn open(
        context: &'a Context,
        layer: &'a ServedLayer,
        hurry: Hurry,
        request: Option<RequestId>,
        rest: Range<u64>,
        deadline: Instant,
    ) -> Result<Self, RequestError> {
        Ok(Self {
            context,
            layer,
            hurry,
            request,
            stream: open_stream(context, layer, hurry, rest.clone(), deadline).await?,
            deadline,
            span_deadline: deadline,
            pace: Pace::default(),
            noted: None,
            unnoted: 0,
            since_open: 0,
            arrived: VecDeque::new(),
            rest,
            last: None,
        })
    }

    /// Waits for the first bytes of the next span.
    pub(crate) async fn begin(&mut self, span: &Span) -> Result<(), RequestError> {
        let size = length(&span.compressed);
        let time = self.context.config.read_timeout + Duration::from_secs(size / FLOOR);
        self.span_deadline = Instant::now() + time;
        let first = self.missing(span).min(FIRST_BYTES);
        while self.held() < first {
            self.receive().await?;
        }
        Ok(())
    }

    /// Moves all time limits: the registry is not to blame for waits for memory.
    pub(crate) fn pause(&mut self, time: Duration) {
        self.deadline += time;
        self.span_deadline += time;
        if !time.is_zero() {
            self.pace.restart();
        }
    }

    /// Returns the compressed bytes of the span that was begun.
    pub(crate) async fn span(&mut self, span: &Span) -> Result<Bytes, RequestError> {
        let len = usize::try_from(length(&span.compressed)).unwrap_or(usize::MAX);
        let shared = self.shared(span);
        // Mostly not copied.
        if shared.is_none() && self.arrived.front().is_some_and(|piece| piece.len() >= len) {
            return Ok(self.take(len));
        }
        let mut bytes = BytesMut::with_capacity(len);
        bytes.extend(shared);
        while bytes.len() < len {
            let Some(piece) = self.arrived.front() else {
                self.receive().await?;
                continue;
            };
            let part = self.take(piece.len().min(len - bytes.len()));
            bytes.extend_from_slice(&part);
        }
        Ok(bytes.freeze())
    }

    /// Reads the body to its end, so that the connection can be reused.
    pub(crate) async fn finish(mut self) {
        let _ = timeout(END_OF_BODY, self.stream.next()).await;
    }

    /// The first byte of a span, if it is also the last of the span before.
    fn shared(&self, span: &Span) -> Option<u8> {
        self.last
            .filter(|_| span.compressed.start < self.rest.start)
    }

    /// Number of bytes that the rest of the body has of a span.
    fn missing(&self, span: &Span) -> usize {
        let shared = usize::from(self.shared(span).is_some());
        let len = usize::try_from(length(&span.compressed)).unwrap_or(usize::MAX);
        len.saturating_sub(shared)
    }

    fn held(&self) -> usize {
        self.arrived.iter().map(Bytes::len).sum()
    }

    /// Waits for more bytes. Resumes the body if it breaks after some headway, and requests the rest
    /// again if it is too slow.
    async fn receive(&mut self) -> Result<(), RequestError> {
        loop {
            let until = self.deadline.min(self.span_deadline);
            let until = self.pace.limit().map_or(until, |limit| limit.min(until));
            let error = match timeout_at(until, self.stream.next()).await {
                Ok(Some(Ok(bytes))) if bytes.is_empty() => continue,
                Ok(Some(Ok(bytes))) => {
                    self.note(bytes.len() as u64);
                    self.arrived.push_back(bytes);
                    return Ok(());
                }
                Ok(Some(Err(error))) => error.into(),
                Ok(None) => RequestError::EndedEarly,
                Err(_) => self.late()?,
            };
            let slow = matches!(error, RequestError::TooSlow(_));
            if !slow && (!error.is_transient() || self.since_open < HEADWAY) {
                return Err(error);
            }
            tracing::debug!(%error, "resuming response body");
            let start = self.rest.start.saturating_add(self.held() as u64);
            let rest = start..self.rest.end;
            let until = self.deadline.min(self.span_deadline);
            self.stream = open_stream(self.context, self.layer, self.hurry, rest, until).await?;
            self.since_open = 0;
            self.pace.restart();
        }
    }

    /// The error of a body from which nothing came in time; `Err` if there is no time for another.
    fn late(&self) -> Result<RequestError, RequestError> {
        let now = Instant::now();
        if now >= self.deadline {
            return Err(RequestError::Stalled(self.context.config.read_timeout));
        }
        self.layer.source.gave_up();
        let error = RequestError::TooSlow(Pace::PERIOD);
        if now >= self.span_deadline {
            return Err(error);
        }
        Ok(error)
    }

    fn note(&mut self, bytes: u64) {
        let now = Instant::now();
        self.since_open = self.since_open.saturating_add(bytes);
        self.deadline = now + self.context.config.read_timeout;
        self.pace.arrived(bytes, now);
        self.unnoted = self.unnoted.saturating_add(bytes);
        if self.noted.is_none_or(|noted| now >= noted + NOTE_EVERY) {
            self.noted = Some(now);
            let mut schedule = self.context.schedule.lock();
            let bytes = std::mem::take(&mut self.unnoted);
            schedule.progressed(self.layer.id, self.request, bytes, now);
        }
    }

    fn take(&mut self, len: usize) -> Bytes {
        let Some(piece) = self.arrived.front_mut() else {
            return Bytes::new();
        };
        let part = piece.slice(..len.min(piece.len()));
        piece.advance(part.len());
        if piece.is_empty() {
            self.arrived.pop_front();
        }
        self.rest.start = self.rest.start.saturating_add(part.len() as u64);
        self.last = part.last().copied().or(self.last);
        part
    }
}

async fn open_stream(
    context: &Context,
    layer: &ServedLayer,
    hurry: Hurry,
    range: Range<u64>,
    deadline: Instant,
) -> Result<ByteStream, RequestError> {
    let stalled = RequestError::Stalled(context.config.read_timeout);
    if deadline <= Instant::now() {
        return Err(stalled);
    }
    let until = Deadline::at(deadline);
    let opened = match hurry {
        Hurry::Reader => layer.source.stream_range(range, until),
        Hurry::None => layer.source.stream_range_giving_way(range, until),
    };
    let stream = timeout_at(deadline, opened).await.map_err(|_| stalled)?;
    Ok(stream?)
}
