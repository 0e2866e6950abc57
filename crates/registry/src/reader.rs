//! A range of a blob in order, resumed where it broke off: exactly the bytes, or an error.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::Stream;

use crate::blob::{Opened, Place};
use crate::retry::Backoff;
use crate::{Deadline, RegistryError};

/// So many bytes count as headway: after them the retry budget starts anew, and each span of the
/// request time-out has to bring as many.
const HEADWAY: u64 = 1 << 20;
/// After the last byte the end of the body follows at once, or the connection is given up.
const END_LIMIT: Duration = Duration::from_secs(1);

pub(crate) struct RangeReader {
    place: Arc<Place>,
    /// What is still to come.
    rest: Range<u64>,
    current: Option<Opened>,
    deadline: Deadline,
    backoff: Backoff,
    last_failure: Option<RegistryError>,
    /// Bytes since the last failure.
    since_failure: u64,
    /// When the present span of the request time-out began, and the bytes since.
    window: (Instant, u64),
    ended: bool,
}

impl RangeReader {
    /// A reader of `range`, which lies within the blob.
    pub(crate) fn new(place: Arc<Place>, range: Range<u64>, deadline: Deadline) -> Self {
        let backoff = place.shared.backoff(deadline);
        Self {
            place,
            rest: range,
            current: None,
            deadline,
            backoff,
            last_failure: None,
            since_failure: 0,
            window: (Instant::now(), 0),
            ended: false,
        }
    }

    /// Makes the request, again if it may help, until the head of an answer is there.
    pub(crate) async fn open(&mut self) -> Result<(), RegistryError> {
        while self.current.is_none() && !self.rest.is_empty() {
            match self.deadline.limit(self.place.open(&self.rest)).await {
                Ok(Ok(opened)) => {
                    self.current = Some(opened);
                    self.window = (Instant::now(), 0);
                }
                Ok(Err(error)) => self.failed(error).await?,
                Err(_) => {
                    return Err(RegistryError::DeadlinePassed {
                        what: self.place.describe(),
                        last: self.last_failure.take().map(Arc::new),
                    });
                }
            }
        }
        Ok(())
    }

    /// The next bytes; `None` after the last.
    pub(crate) async fn next(&mut self) -> Option<Result<Bytes, RegistryError>> {
        if self.ended {
            return None;
        }
        match self.advance().await {
            Ok(Some(bytes)) => Some(Ok(bytes)),
            Ok(None) => {
                self.ended = true;
                None
            }
            Err(error) => {
                self.ended = true;
                Some(Err(error))
            }
        }
    }

    pub(crate) fn into_stream(self) -> impl Stream<Item = Result<Bytes, RegistryError>> + Send {
        futures::stream::unfold(self, |mut reader| async {
            let item = reader.next().await?;
            Some((item, reader))
        })
    }

    async fn advance(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            if self.rest.is_empty() {
                return self.finish().await.map(|()| None);
            }
            self.open().await?;
            let Some(current) = self.current.as_mut() else {
                continue;
            };
            match next_piece(current).await {
                Ok(Some(bytes)) => {
                    let length = bytes.len() as u64;
                    self.rest.start = self.rest.start.saturating_add(length);
                    self.since_failure = self.since_failure.saturating_add(length);
                    self.window.1 = self.window.1.saturating_add(length);
                    if self.since_failure >= HEADWAY {
                        self.backoff.reset();
                    }
                    self.cut_off_a_trickle().await?;
                    return Ok(Some(bytes));
                }
                // A server may give less than was asked for; the rest is asked for next.
                Ok(None) => self.current = None,
                Err(error) => self.failed(error).await?,
            }
        }
    }

    /// Takes note of a failure and waits, or gives it back when that is the end.
    async fn failed(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        self.current = None;
        self.since_failure = 0;
        self.last_failure = Some(error.clone());
        self.backoff.wait_after(error).await
    }

    /// A body that comes too slowly to ever end counts as a failure.
    async fn cut_off_a_trickle(&mut self) -> Result<(), RegistryError> {
        let limit = self.place.shared.config().request_timeout;
        let Some(current) = self.current.as_ref() else {
            return Ok(());
        };
        let (began, bytes) = self.window;
        if self.rest.is_empty() || began.elapsed() < limit {
            return Ok(());
        }
        if bytes >= HEADWAY {
            self.window = (Instant::now(), 0);
            return Ok(());
        }
        let request = current.response.line().clone();
        self.failed(RegistryError::Timeout {
            request,
            phase: "end of the body",
            after: limit,
        })
        .await
    }

    /// All bytes are here. Reads the end of the body, so that the connection can be used again
    /// and a body that is longer than promised is noticed.
    async fn finish(&mut self) -> Result<(), RegistryError> {
        let Some(mut current) = self.current.take().filter(|current| !current.overlong) else {
            return Ok(());
        };
        match tokio::time::timeout(END_LIMIT, next_piece(&mut current)).await {
            Ok(Err(error @ RegistryError::BadBody { .. })) if current.left == 0 => {
                // A connection that breaks now has done its work; surplus bytes are an error.
                if current.surplus { Err(error) } else { Ok(()) }
            }
            _ => Ok(()),
        }
    }
}

/// The next wanted bytes of a body; `None` when it has given all that it promised.
async fn next_piece(current: &mut Opened) -> Result<Option<Bytes>, RegistryError> {
    loop {
        let Some(mut bytes) = current.response.chunk().await? else {
            if current.left == 0 && current.skip == 0 {
                return Ok(None);
            }
            return Err(RegistryError::BadBody {
                request: current.response.line().clone(),
                reason: format!("the body ended {} bytes early", current.left),
            });
        };
        let skipped = current.skip.min(bytes.len() as u64);
        current.skip -= skipped;
        let mut bytes = bytes.split_off(usize::try_from(skipped).unwrap_or(usize::MAX));
        if bytes.is_empty() {
            continue;
        }
        let wanted = usize::try_from(current.left).unwrap_or(usize::MAX);
        if bytes.len() > wanted {
            if !current.overlong {
                current.surplus = true;
                return Err(RegistryError::BadBody {
                    request: current.response.line().clone(),
                    reason: "the body is longer than promised".to_owned(),
                });
            }
            bytes.truncate(wanted);
        }
        current.left -= bytes.len() as u64;
        return Ok(Some(bytes));
    }
}
