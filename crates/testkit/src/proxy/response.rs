//! Passes a response on to the client, at the set speed and with the set fault.

use anyhow::{Context, Result, ensure};
use tokio::time::sleep_until;

use super::fault::Fault;
use super::state::ProxyState;
use super::stats::Ticket;
use super::throttle::{Pacer, Throttle};
use super::wire::{BUFFER, Wire};
use crate::http1::{Framing, Head, chunk_length};

/// Throttled bodies go out in pieces of this many milliseconds of their rate.
const PIECE_MILLIS: u64 = 2;

/// What becomes of the client's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    KeepOpen,
    Close,
    Reset,
    Hang,
}

/// Speed and fault of one response.
pub(crate) struct ResponsePlan {
    throttle: Throttle,
    /// The body ends after this much, and then this happens.
    end: Option<(u64, Ending)>,
    shorten: Option<u64>,
    flip: Option<u64>,
    flip_in_blob: Option<u64>,
    shift_content_range: i64,
    headers: Vec<(&'static str, Option<&'static str>)>,
}

impl ResponsePlan {
    pub(crate) fn new(throttle: Throttle) -> Self {
        Self {
            throttle,
            end: None,
            shorten: None,
            flip: None,
            flip_in_blob: None,
            shift_content_range: 0,
            headers: Vec::new(),
        }
    }

    /// Takes over a fault that concerns the response.
    pub(crate) fn fault(&mut self, fault: &Fault) {
        match fault {
            Fault::ResetAfter(at) => self.end = Some((*at, Ending::Reset)),
            Fault::HangAfter(at) => self.end = Some((*at, Ending::Hang)),
            Fault::Truncate(at) => self.end = Some((*at, Ending::Close)),
            Fault::Shorten(length) => self.shorten = Some(*length),
            Fault::Corrupt(at) => self.flip = Some(*at),
            Fault::CorruptBlob(at) => self.flip_in_blob = Some(*at),
            Fault::WrongContentRange(shift) => self.shift_content_range = *shift,
            Fault::Headers(headers) => self.headers.clone_from(headers),
            // Dealt with before there is a response.
            Fault::Status { .. }
            | Fault::Redirect { .. }
            | Fault::Reset
            | Fault::Hang
            | Fault::IgnoreRange
            | Fault::Delay(_) => {}
        }
    }

    fn alter(&mut self, head: &mut Head) {
        if let Some(at) = self.flip_in_blob {
            let start = content_range(head).map_or(0, |(start, _, _)| start);
            self.flip = at.checked_sub(start).filter(|_| head.status() < 300);
        }
        if let (Some(length), Framing::Length(whole)) = (self.shorten, head.framing())
            && length < whole
        {
            head.set("Content-Length", length.to_string());
            self.end = Some((length, Ending::Close));
        }
        if self.shift_content_range != 0
            && let Some((start, end, rest)) = content_range(head)
        {
            let shifted = |at: u64| at.saturating_add_signed(self.shift_content_range);
            let value = format!("bytes {}-{}/{rest}", shifted(start), shifted(end));
            head.set("Content-Range", value);
        }
        for (name, value) in &self.headers {
            match value {
                Some(value) => head.set(name, *value),
                None => head.remove(name),
            }
        }
    }
}

/// First and last byte and what stands behind the slash.
fn content_range(head: &Head) -> Option<(u64, u64, String)> {
    let (range, rest) = head
        .get("content-range")?
        .strip_prefix("bytes ")?
        .split_once('/')?;
    let (start, end) = range.split_once('-')?;
    Some((start.parse().ok()?, end.parse().ok()?, rest.to_owned()))
}

pub(crate) async fn relay_response(
    client: &mut Wire,
    server: &mut Wire,
    mut head: Head,
    bodiless: bool,
    mut plan: ResponsePlan,
    state: &ProxyState,
    ticket: &Ticket<'_>,
) -> Result<Ending> {
    let framing = head.framing();
    let server_closes = head
        .get("connection")
        .is_some_and(|value| value.eq_ignore_ascii_case("close"));
    // Uploads continue through the proxy, not past it.
    let own = format!("http://{}", state.address);
    if let Some(location) = head.get("location")
        && let Some(rest) = location.strip_prefix(&format!("http://{}", state.upstream))
    {
        let location = format!("{own}{rest}");
        head.set("Location", location);
    }
    plan.alter(&mut head);
    ticket.status(head.status());
    let bodiless = bodiless || matches!(head.status(), 204 | 304);
    if bodiless || framing == Framing::Length(0) {
        ticket.answered();
    }
    client.send(&head.encode()).await?;
    let mut body = Body {
        plan,
        state,
        ticket,
        ends_with_its_length: matches!(framing, Framing::Length(_)),
        own: Pacer::new(),
        at: 0,
        buffer: Vec::new(),
    };
    let ending = if bodiless {
        Ending::KeepOpen
    } else {
        match framing {
            Framing::Length(length) => body.pass(client, server, Some(length)).await?,
            Framing::UntilClose => {
                body.pass(client, server, None).await?;
                Ending::Close
            }
            Framing::Chunked => body.pass_chunks(client, server).await?,
        }
    };
    Ok(if server_closes && ending == Ending::KeepOpen {
        Ending::Close
    } else {
        ending
    })
}

/// A body on its way.
struct Body<'a> {
    plan: ResponsePlan,
    state: &'a ProxyState,
    ticket: &'a Ticket<'a>,
    /// The client knows from its length that it is complete.
    ends_with_its_length: bool,
    /// The rate of this response.
    own: Pacer,
    /// Bytes passed so far.
    at: u64,
    buffer: Vec<u8>,
}

impl Body<'_> {
    /// Passes this many bytes, or everything until the server closes.
    async fn pass(
        &mut self,
        client: &mut Wire,
        server: &mut Wire,
        length: Option<u64>,
    ) -> Result<Ending> {
        self.buffer.resize(BUFFER, 0);
        let mut left = length.unwrap_or(u64::MAX);
        while left > 0 {
            let until_end = match self.plan.end {
                Some((end, ending)) if end <= self.at => return Ok(ending),
                Some((end, _)) => end - self.at,
                None => u64::MAX,
            };
            let wanted = left.min(until_end).min(self.piece());
            let wanted = usize::try_from(wanted).unwrap_or(usize::MAX).min(BUFFER);
            let count = server.some(&mut self.buffer[..wanted]).await?;
            if count == 0 {
                ensure!(length.is_none(), "the registry closed in a body");
                break;
            }
            if let Some(offset) = self.plan.flip.and_then(|flip| flip.checked_sub(self.at))
                && let Ok(offset) = usize::try_from(offset)
                && let Some(byte) = self.buffer[..count].get_mut(offset)
            {
                *byte ^= 0xff;
            }
            self.pace(count as u64).await;
            left -= count as u64;
            if left == 0 && self.ends_with_its_length {
                self.ticket.answered();
            }
            self.ticket.sends(count as u64);
            if let Err(error) = client.send(&self.buffer[..count]).await {
                self.ticket.not_sent(count as u64);
                return Err(error);
            }
            self.at += count as u64;
        }
        Ok(Ending::KeepOpen)
    }

    async fn pass_chunks(&mut self, client: &mut Wire, server: &mut Wire) -> Result<Ending> {
        loop {
            let mut line = server.line().await?;
            let length = chunk_length(&line).context("a chunk without length")?;
            line.extend_from_slice(b"\r\n");
            client.send(&line).await?;
            if length == 0 {
                break;
            }
            let ending = self.pass(client, server, Some(length)).await?;
            if ending != Ending::KeepOpen {
                return Ok(ending);
            }
            ensure!(server.line().await?.is_empty(), "a chunk that is too long");
            client.send(b"\r\n").await?;
        }
        loop {
            let mut line = server.line().await?;
            let last = line.is_empty();
            line.extend_from_slice(b"\r\n");
            if last {
                self.ticket.answered();
            }
            client.send(&line).await?;
            if last {
                return Ok(Ending::KeepOpen);
            }
        }
    }

    fn piece(&self) -> u64 {
        let rates = [self.plan.throttle.per_response, self.plan.throttle.total];
        let rate = rates.into_iter().flatten().min();
        rate.map_or(u64::MAX, |rate| (rate / 1000 * PIECE_MILLIS).max(1024))
    }

    async fn pace(&mut self, bytes: u64) {
        let own = self
            .plan
            .throttle
            .per_response
            .map(|rate| self.own.take(bytes, rate));
        let total = self
            .plan
            .throttle
            .total
            .map(|rate| self.state.total.lock().take(bytes, rate));
        if let Some(until) = own.max(total) {
            sleep_until(until).await;
        }
    }
}
