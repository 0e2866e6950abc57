//! The interface for reading parts of one immutable blob.

use std::ops::Range;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::BoxStream;

use crate::{Deadline, RegistryError};

/// A stream of bytes in order, in pieces of any size. An error is its last item.
pub type ByteStream = BoxStream<'static, Result<Bytes, RegistryError>>;

/// A blob that can be read in parts.
#[async_trait]
pub trait BlobSource: Send + Sync + 'static {
    /// Returns the size of the blob in bytes.
    fn size(&self) -> u64;

    /// Streams exactly the bytes of `range` in order, or an error item after some of them: never
    /// others, and never an end without error before the last byte.
    ///
    /// After `deadline` nothing is tried or waited for again: neither the first response nor the
    /// one that resumes a broken body. It does not cut off a body whose bytes keep arriving.
    ///
    /// # Errors
    /// The request failed in spite of the retries, `deadline` passed before the response came, or
    /// `range` is outside of the blob.
    async fn stream_range(
        &self,
        range: Range<u64>,
        deadline: Deadline,
    ) -> Result<ByteStream, RegistryError>;

    /// As [`BlobSource::stream_range`], for bytes that no reader waits for: a server that has too
    /// many requests ([`RegistryError::is_throttle`]) is not asked again, and its error returned.
    ///
    /// # Errors
    /// As for [`BlobSource::stream_range`].
    async fn stream_range_giving_way(
        &self,
        range: Range<u64>,
        deadline: Deadline,
    ) -> Result<ByteStream, RegistryError> {
        self.stream_range(range, deadline).await
    }

    /// Returns exactly the bytes of `range`.
    ///
    /// # Errors
    /// As for [`BlobSource::stream_range`].
    async fn read_range(
        &self,
        range: Range<u64>,
        deadline: Deadline,
    ) -> Result<Bytes, RegistryError> {
        let length = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        let mut stream = self.stream_range(range, deadline).await?;
        let Some(first) = stream.next().await.transpose()? else {
            return Ok(Bytes::new());
        };
        if first.len() == length {
            // Polled to its end: the connection returns to the pool.
            return match stream.next().await {
                Some(Err(error)) => Err(error),
                _ => Ok(first),
            };
        }
        let mut all = BytesMut::with_capacity(length);
        all.extend_from_slice(&first);
        while let Some(piece) = stream.next().await.transpose()? {
            all.extend_from_slice(&piece);
        }
        Ok(all.freeze())
    }

    /// Returns whether the source is known to ignore ranges: each read then transfers the blob from
    /// its start, and a few large reads are better than many small ones.
    fn ignores_ranges(&self) -> bool {
        false
    }

    /// Number of requests for this blob that failed and were retried so far (for example because of
    /// 429 or a time-out). Growth means that fewer bytes should be requested at a time.
    fn retry_count(&self) -> u64 {
        0
    }

    /// Notes that the caller gave up on a response, because it was too slow: where the blob has
    /// several places, the next request goes to another one.
    fn gave_up(&self) {}

    /// Notes that bytes of this blob were not what their digest says: the next request goes to another
    /// place, if the blob has several.
    fn served_damage(&self) {}

    /// Names the host that is responsible for the blob. Blobs of one origin share limits and
    /// failures; what one origin does, does not concern the others. By default the part of
    /// [`describe`](Self::describe) before the first slash.
    ///
    /// It is the name of the registry, not of the host that a registry redirects to: an origin must
    /// not be able to pass for another one.
    fn origin(&self) -> String {
        let blob = self.describe();
        let registry = blob.split('/').next().unwrap_or_default();
        registry.to_owned()
    }

    /// Names the blob for logs, as `host/repository@digest`, without secrets.
    fn describe(&self) -> String;
}
