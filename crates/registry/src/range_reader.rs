//! A range of a blob in order, resumed where it broke off: exactly the bytes, or an error.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use tokio::time::Instant;

use crate::blob_locator::{BlobLocator, OpenBody};
use crate::retry::Backoff;
use crate::{BodyDefect, Deadline, RegistryError, RetryPolicy};

/// Number of bytes that count as progress: they refill the retry budget, and each period of the
/// request time-out must bring as many.
const PROGRESS: u64 = 1 << 20;
/// Longest wait for the end of a body after its last byte; then the connection is given up.
const END_LIMIT: Duration = Duration::from_secs(1);

pub(crate) struct RangeReader {
    locator: Arc<BlobLocator>,
    /// The bytes that have not come yet.
    rest: Range<u64>,
    current: Option<OpenBody>,
    deadline: Deadline,
    backoff: Backoff,
    last_failure: Option<RegistryError>,
    /// Number of bytes since the last failure.
    since_failure: u64,
    /// Start of the current period of the request time-out, and the number of bytes since.
    window: (Instant, u64),
    /// Bodies that broke off since the last progress.
    broken: u32,
    /// Longest time for retries without progress.
    patience: Option<Duration>,
    ended: bool,
}

impl RangeReader {
    /// Creates a reader of `range`, which must lie within the blob.
    pub(crate) fn new(locator: Arc<BlobLocator>, range: Range<u64>, deadline: Deadline) -> Self {
        let policy = locator.engine.config().retries;
        Self::with_retries(locator, range, deadline, policy)
    }

    /// Creates a reader of a part of a layer that readers wait for.
    pub(crate) fn for_readers(
        locator: Arc<BlobLocator>,
        range: Range<u64>,
        deadline: Deadline,
    ) -> Self {
        let config = locator.engine.config();
        let policy = config.span_retries.unwrap_or(config.retries);
        Self::with_retries(locator, range, deadline, policy)
    }

    fn with_retries(
        locator: Arc<BlobLocator>,
        range: Range<u64>,
        deadline: Deadline,
        policy: RetryPolicy,
    ) -> Self {
        let backoff = Backoff::new(policy, Arc::clone(&locator.retries), deadline);
        Self {
            locator,
            rest: range,
            current: None,
            deadline,
            backoff,
            last_failure: None,
            since_failure: 0,
            window: (Instant::now(), 0),
            broken: 0,
            patience: None,
            ended: false,
        }
    }

    /// The same reader, which takes a server's request to wait for longer as its answer.
    pub(crate) fn waiting_at_most(mut self, longest: Option<Duration>) -> Self {
        self.backoff.longest_wait = longest;
        self
    }

    /// The same reader, which does not ask a server again that has too many requests.
    pub(crate) fn giving_way(mut self) -> Self {
        self.backoff.gives_way = true;
        self
    }

    /// The same reader, whose retries end after a time without progress.
    pub(crate) fn patient_for(mut self, patience: Option<Duration>) -> Self {
        self.patience = patience;
        self.extend_patience();
        self
    }

    fn extend_patience(&mut self) {
        if let Some(patience) = self.patience {
            self.backoff
                .end_at(self.deadline.min(Deadline::after(patience)));
        }
    }

    /// The number of bytes that have not come yet.
    pub(crate) fn remaining(&self) -> u64 {
        self.rest.end.saturating_sub(self.rest.start)
    }

    /// Makes the request, with retries, until the head of a response has arrived.
    pub(crate) async fn open(&mut self) -> Result<(), RegistryError> {
        while self.current.is_none() && !self.rest.is_empty() {
            match self.deadline.limit(self.locator.open(&self.rest)).await {
                Ok(Ok(body)) => {
                    self.current = Some(body);
                    self.window = (Instant::now(), 0);
                }
                Ok(Err(error)) => self.failed(error).await?,
                Err(_) => {
                    return Err(RegistryError::DeadlineExceeded {
                        what: self.locator.describe(),
                        last: self.last_failure.take().map(Arc::new),
                    });
                }
            }
        }
        Ok(())
    }

    /// Returns the next bytes; `None` after the last.
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
                    if self.since_failure >= PROGRESS {
                        self.backoff.reset();
                        self.broken = 0;
                    }
                    self.extend_patience();
                    self.check_progress().await?;
                    return Ok(Some(bytes));
                }
                // A server may send less than was requested; the rest is requested next.
                Ok(None) => self.current = None,
                Err(error) => {
                    self.broken = self.broken.saturating_add(1);
                    // One connection may break; what breaks again is the host.
                    if self.broken > 1 {
                        self.locator.distrust(&error);
                    }
                    self.failed(error).await?;
                }
            }
        }
    }

    /// Notes a failure and waits for the next attempt, or returns the failure if it is final.
    async fn failed(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        self.current = None;
        self.since_failure = 0;
        self.last_failure = Some(error.clone());
        self.backoff.wait_after(error).await
    }

    /// Treats a body that comes too slowly to ever end as a failure.
    async fn check_progress(&mut self) -> Result<(), RegistryError> {
        let limit = self.locator.engine.config().request_timeout;
        let Some(current) = self.current.as_ref() else {
            return Ok(());
        };
        let (began, bytes) = self.window;
        if self.rest.is_empty() || began.elapsed() < limit {
            return Ok(());
        }
        if bytes >= PROGRESS {
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

    /// Reads the end of the body after its last wanted byte, so that the connection can be reused
    /// and a body that is longer than announced is noticed.
    async fn finish(&mut self) -> Result<(), RegistryError> {
        let Some(mut current) = self.current.take().filter(|current| !current.overlong) else {
            return Ok(());
        };
        match tokio::time::timeout(END_LIMIT, next_piece(&mut current)).await {
            Ok(Err(error @ RegistryError::BadBody { .. })) if current.left == 0 => {
                // Only surplus bytes are an error now, not a connection that breaks.
                if current.surplus { Err(error) } else { Ok(()) }
            }
            _ => Ok(()),
        }
    }
}

/// Returns the next wanted bytes of a body; `None` at the end of what it announced.
async fn next_piece(current: &mut OpenBody) -> Result<Option<Bytes>, RegistryError> {
    loop {
        let Some(mut bytes) = current.response.chunk().await? else {
            if current.left == 0 && current.skip == 0 {
                return Ok(None);
            }
            return Err(RegistryError::BadBody {
                request: current.response.line().clone(),
                source: BodyDefect::EndedEarly {
                    missing: current.left,
                },
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
                    source: BodyDefect::TooLong,
                });
            }
            bytes.truncate(wanted);
        }
        current.left -= bytes.len() as u64;
        return Ok(Some(bytes));
    }
}
