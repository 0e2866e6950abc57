//! A [`BlobSource`] in memory with scripted failures, for the tests of readers of blobs. Requests
//! are counted from 0.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use http::Method;
use parking_lot::Mutex;
use url::Url;

use crate::source::ByteStream;
use crate::{BlobSource, ConnectionFailure, Deadline, RegistryError, RequestLine};

/// A failure of one request.
#[derive(Debug, Clone)]
pub enum Fault {
    /// An error instead of a response.
    Fail(RegistryError),
    /// After this many bytes the stream ends with a [`RegistryError::BadBody`].
    Truncate(u64),
    /// The byte at this offset *of the blob* is flipped, when it is within the range.
    Corrupt(u64),
    /// The response comes after this time.
    Delay(Duration),
    /// The response never comes.
    Hang,
}

/// A blob in memory. Clones share the script and the record of requests.
#[derive(Debug, Clone)]
pub struct MemoryBlob {
    data: Bytes,
    state: Arc<Mutex<State>>,
    /// Largest piece of a stream, in bytes.
    piece: usize,
}

#[derive(Debug, Default)]
struct State {
    requests: Vec<Range<u64>>,
    faults: BTreeMap<usize, Fault>,
    every: Option<Fault>,
}

impl MemoryBlob {
    /// Creates a blob without failures.
    #[must_use]
    pub fn new(data: impl Into<Bytes>) -> Self {
        Self {
            data: data.into(),
            state: Arc::default(),
            piece: 64 << 10,
        }
    }

    /// Limits the pieces of streams to `bytes` bytes.
    #[must_use]
    pub fn with_piece_size(mut self, bytes: usize) -> Self {
        self.piece = bytes.max(1);
        self
    }

    /// Scripts a failure of request number `request`.
    pub fn fault(&self, request: usize, fault: Fault) {
        self.state.lock().faults.insert(request, fault);
    }

    /// Scripts a failure of every request that has no script of its own.
    pub fn fault_always(&self, fault: Option<Fault>) {
        self.state.lock().every = fault;
    }

    /// Returns the requested ranges, in order.
    #[must_use]
    pub fn requests(&self) -> Vec<Range<u64>> {
        self.state.lock().requests.clone()
    }

    /// Returns the error of an unreachable registry, which is transient.
    #[must_use]
    pub fn unreachable() -> RegistryError {
        RegistryError::Unreachable {
            request: line(),
            source: ConnectionFailure::Scripted("connection refused"),
        }
    }

    /// Returns the error of a registry that responds with `status`.
    #[must_use]
    pub fn status(status: u16) -> RegistryError {
        RegistryError::Status {
            request: line(),
            status,
            message: "scripted".to_owned(),
            codes: Vec::new(),
            retry_after: None,
        }
    }
}

fn line() -> RequestLine {
    #[expect(clippy::unwrap_used, reason = "a constant URL that parses")]
    let url = Url::parse("memory://registry/blob").unwrap();
    RequestLine::new(&Method::GET, &url, "memory")
}

async fn limited<T>(
    deadline: Deadline,
    work: impl Future<Output = T> + Send,
) -> Result<T, RegistryError> {
    deadline
        .limit(work)
        .await
        .map_err(|_| RegistryError::DeadlineExceeded {
            what: line().to_string(),
            last: None,
        })
}

#[async_trait]
impl BlobSource for MemoryBlob {
    fn size(&self) -> u64 {
        self.data.len() as u64
    }

    async fn stream_range(
        &self,
        range: Range<u64>,
        deadline: Deadline,
    ) -> Result<ByteStream, RegistryError> {
        let fault = {
            let mut state = self.state.lock();
            let number = state.requests.len();
            state.requests.push(range.clone());
            state.faults.get(&number).or(state.every.as_ref()).cloned()
        };
        let outside = || RegistryError::OutOfRange {
            what: self.describe(),
            range: range.clone(),
            size: self.size(),
        };
        if range.start > range.end || range.end > self.size() {
            return Err(outside());
        }
        let start = usize::try_from(range.start).map_err(|_| outside())?;
        let end = usize::try_from(range.end).map_err(|_| outside())?;
        let mut data = self.data.slice(start..end);
        let mut broken = None;
        match fault {
            None => {}
            Some(Fault::Fail(error)) => return Err(error),
            Some(Fault::Truncate(after)) => {
                data.truncate(usize::try_from(after).unwrap_or(usize::MAX));
                broken = Some(RegistryError::BadBody {
                    request: line(),
                    source: ConnectionFailure::Scripted("the body ended").into(),
                });
            }
            Some(Fault::Corrupt(at)) => {
                let mut bytes = data.to_vec();
                // Outside of the range: nothing to flip.
                let within = at
                    .checked_sub(range.start)
                    .and_then(|within| usize::try_from(within).ok());
                if let Some(byte) = within.and_then(|within| bytes.get_mut(within)) {
                    *byte ^= 0xff;
                }
                data = bytes.into();
            }
            Some(Fault::Delay(time)) => limited(deadline, tokio::time::sleep(time)).await?,
            Some(Fault::Hang) => limited(deadline, std::future::pending()).await?,
        }
        let mut pieces = Vec::new();
        while !data.is_empty() {
            pieces.push(Ok(data.split_to(self.piece.min(data.len()))));
        }
        pieces.extend(broken.map(Err));
        Ok(futures::stream::iter(pieces).boxed())
    }

    fn describe(&self) -> String {
        format!("memory@{}", soci_oci::Digest::of(&self.data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_double_gives_exactly_the_range_unless_scripted() {
        let blob = MemoryBlob::new(&b"0123456789"[..]).with_piece_size(3);
        blob.fault(1, Fault::Truncate(2));
        blob.fault(2, Fault::Corrupt(5));
        blob.fault(3, Fault::Fail(MemoryBlob::unreachable()));
        assert_eq!(
            blob.read_range(2..9, Deadline::far()).await.unwrap(),
            "2345678"
        );
        assert!(
            blob.read_range(2..9, Deadline::far())
                .await
                .unwrap_err()
                .is_transient()
        );
        assert_ne!(
            blob.read_range(2..9, Deadline::far()).await.unwrap(),
            "2345678"
        );
        assert!(blob.read_range(0..1, Deadline::far()).await.is_err());
        assert_eq!(blob.read_range(0..0, Deadline::far()).await.unwrap(), "");
        assert!(blob.read_range(0..11, Deadline::far()).await.is_err());
        assert_eq!(blob.requests().len(), 6);
    }
}
