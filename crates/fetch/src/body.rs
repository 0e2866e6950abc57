//! The body of a response, cut into spans. Broken bodies are resumed, and slow ones requested again.
//!
//! What a reader waits for may come in two responses at once, where one is slower than the link: the
//! second half is the *tail*. Nothing depends on it: if it fails, the body is resumed where the first
//! half ends.

use std::collections::VecDeque;
use std::ops::Range;
use std::pin::pin;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use futures::stream::{BoxStream, once};
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use soci_registry::Deadline;
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
    stream: Pieces<'a>,
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
    tail: Option<Tail<'a>>,
    /// Where the first half ends, until the second follows.
    middle: Option<u64>,
    /// Whether there is memory for the span that was begun.
    has_memory: bool,
    first: FirstResponse,
}

type Pieces<'a> = BoxStream<'a, Result<Bytes, RequestError>>;

/// What the first response of a body says about the rate of one.
struct FirstResponse {
    began: Instant,
    /// Time since then in which it was not read.
    paused: Duration,
    /// Number of bytes that it has brought; `None` once another follows.
    bytes: Option<u64>,
}

/// The second half of a body, from a response of its own.
struct Tail<'a> {
    /// Offsets in the blob.
    range: Range<u64>,
    stream: Pieces<'a>,
    arrived: VecDeque<Bytes>,
    /// Number of bytes that have arrived.
    held: u64,
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
        let stream = open_stream(context, layer, hurry, rest.clone(), deadline).await?;
        Ok(Self::new(
            context, layer, hurry, request, rest, deadline, stream,
        ))
    }

    /// Opens the halves of a span, for which a reader waits, at once.
    pub(crate) async fn open_halves(
        context: &'a Context,
        layer: &'a ServedLayer,
        request: RequestId,
        rest: Range<u64>,
        deadline: Instant,
    ) -> Result<Self, RequestError> {
        let middle = rest.start.midpoint(rest.end);
        let mut tail = Some(Tail::new(context, layer, middle..rest.end, deadline));
        let half = rest.start..middle;
        let mut opening = pin!(open_stream(context, layer, Hurry::Reader, half, deadline));
        let stream = loop {
            tokio::select! {
                // The first half is requested first.
                biased;
                stream = &mut opening => break stream?,
                more = receive_tail(&mut tail, FIRST_BYTES as u64) => {
                    if more.is_err() {
                        tail = None;
                    }
                }
            }
        };
        let (hurry, request) = (Hurry::Reader, Some(request));
        let body = Self::new(context, layer, hurry, request, rest, deadline, stream);
        Ok(Self {
            tail,
            middle: Some(middle),
            ..body
        })
    }

    fn new(
        context: &'a Context,
        layer: &'a ServedLayer,
        hurry: Hurry,
        request: Option<RequestId>,
        rest: Range<u64>,
        deadline: Instant,
        stream: Pieces<'a>,
    ) -> Self {
        Self {
            context,
            layer,
            hurry,
            request,
            stream,
            deadline,
            span_deadline: deadline,
            pace: Pace::default(),
            noted: None,
            unnoted: 0,
            since_open: 0,
            arrived: VecDeque::new(),
            rest,
            last: None,
            tail: None,
            middle: None,
            has_memory: false,
            first: FirstResponse {
                began: Instant::now(),
                paused: Duration::ZERO,
                bytes: Some(0),
            },
        }
    }

    /// Waits for the first bytes of the next span.
    pub(crate) async fn begin(&mut self, span: &Span) -> Result<(), RequestError> {
        let size = length(&span.compressed);
        let time = self.context.config.read_timeout + Duration::from_secs(size / FLOOR);
        self.span_deadline = Instant::now() + time;
        self.has_memory = false;
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
        self.first.paused += time;
        if !time.is_zero() {
            self.pace.restart();
        }
    }

    /// Returns the compressed bytes of the span that was begun.
    pub(crate) async fn span(&mut self, span: &Span) -> Result<Bytes, RequestError> {
        self.has_memory = true;
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
        self.first_ended();
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
            if self.middle == Some(self.next()) && self.continue_behind_middle().await? {
                return Ok(());
            }
            let until = self.deadline.min(self.span_deadline);
            let until = self.pace.limit().map_or(until, |limit| limit.min(until));
            let most = if self.has_memory { u64::MAX } else { 0 };
            let next = tokio::select! {
                next = timeout_at(until, self.stream.next()) => next,
                more = receive_tail(&mut self.tail, most) => {
                    self.note_tail(more);
                    continue;
                }
            };
            let error = match next {
                Ok(Some(Ok(bytes))) if bytes.is_empty() => continue,
                Ok(Some(Ok(bytes))) => {
                    let len = bytes.len() as u64;
                    self.since_open = self.since_open.saturating_add(len);
                    self.first.bytes = self.first.bytes.map(|bytes| bytes.saturating_add(len));
                    self.pace.arrived(len, Instant::now());
                    self.note(len);
                    self.arrived.push_back(bytes);
                    return Ok(());
                }
                Ok(Some(Err(error))) => error,
                Ok(None) => RequestError::EndedEarly,
                Err(_) => self.late()?,
            };
            let slow = matches!(error, RequestError::TooSlow(_));
            if !slow && (!error.is_transient() || self.since_open < HEADWAY) {
                return Err(error);
            }
            tracing::debug!(%error, "resuming response body");
            if self.tail.is_none() {
                self.middle = None;
            }
            self.request(self.next()..self.middle.unwrap_or(self.rest.end))
                .await?;
        }
    }

    /// Offset in the blob of the first byte that has not arrived.
    fn next(&self) -> u64 {
        self.rest.start.saturating_add(self.held() as u64)
    }

    /// Requests a range, whose response follows.
    async fn request(&mut self, range: Range<u64>) -> Result<(), RequestError> {
        let until = self.deadline.min(self.span_deadline);
        self.stream = open_stream(self.context, self.layer, self.hurry, range, until).await?;
        self.since_open = 0;
        self.first.bytes = None;
        self.pace.restart();
        Ok(())
    }

    /// Continues with the second half, which is requested again unless some of it has arrived. Returns
    /// whether some has.
    async fn continue_behind_middle(&mut self) -> Result<bool, RequestError> {
        self.middle = None;
        self.first_ended();
        // It may have come at the same time.
        if let Some(more) = receive_tail(&mut self.tail, 1).now_or_never() {
            self.note_tail(more);
        }
        match self.tail.take().filter(|tail| tail.held > 0) {
            Some(tail) => {
                self.arrived.extend(tail.arrived);
                self.stream = tail.stream;
                self.since_open = tail.held;
                self.pace.restart();
                Ok(true)
            }
            None => {
                self.request(self.next()..self.rest.end).await?;
                Ok(false)
            }
        }
    }

    /// Notes what the second half has brought. What it has not is requested with the rest.
    fn note_tail(&mut self, more: Result<u64, RequestError>) {
        match more {
            Ok(bytes) => self.note(bytes),
            Err(error) => {
                tracing::debug!(%error, "the second half of a body is requested later");
                if error.is_overload() {
                    let mut schedule = self.context.schedule.lock();
                    schedule.overloaded(self.layer.id, Instant::now());
                }
                self.tail = None;
            }
        }
    }

    /// Notes the rate of the first response, if it is complete.
    fn first_ended(&mut self) {
        let Some(bytes) = self.first.bytes.take().filter(|_| self.request.is_some()) else {
            return;
        };
        let time = self.first.began.elapsed().saturating_sub(self.first.paused);
        let mut schedule = self.context.schedule.lock();
        schedule.response_ended(self.layer.id, bytes, time);
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
        self.deadline = now + self.context.config.read_timeout;
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

impl<'a> Tail<'a> {
    /// Requests the second half when it is first polled.
    fn new(
        context: &'a Context,
        layer: &'a ServedLayer,
        range: Range<u64>,
        deadline: Instant,
    ) -> Self {
        // A server that has too many requests is not asked again: the first half is under way.
        let opened = open_stream(context, layer, Hurry::None, range.clone(), deadline);
        Self {
            range,
            stream: once(opened).try_flatten().boxed(),
            arrived: VecDeque::new(),
            held: 0,
        }
    }
}

/// Waits for more of a tail, if less than `most` bytes of it are there; returns their number. Never
/// returns if there is nothing to wait for.
async fn receive_tail(tail: &mut Option<Tail<'_>>, most: u64) -> Result<u64, RequestError> {
    let Some(tail) = tail.as_mut().filter(|tail| {
        let missing = length(&tail.range).saturating_sub(tail.held);
        missing > 0 && tail.held < most
    }) else {
        return std::future::pending().await;
    };
    let bytes = tail
        .stream
        .try_next()
        .await?
        .ok_or(RequestError::EndedEarly)?;
    let len = bytes.len() as u64;
    tail.held = tail.held.saturating_add(len);
    tail.arrived.extend((len > 0).then_some(bytes));
    Ok(len)
}

async fn open_stream<'a>(
    context: &'a Context,
    layer: &'a ServedLayer,
    hurry: Hurry,
    range: Range<u64>,
    deadline: Instant,
) -> Result<Pieces<'a>, RequestError> {
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
    Ok(stream?.map_err(RequestError::from).boxed())
}
