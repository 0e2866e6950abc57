//! One blob at a registry, as a [`BlobSource`].

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use soci_oci::Digest;

use crate::blob_locator::BlobLocator;
use crate::range_reader::RangeReader;
use crate::source::ByteStream;
use crate::{BlobSource, Deadline, RegistryError, whole_blob};

/// A blob at a registry. Remembers which endpoint serves it and where that redirects to, and
/// looks for it again when the redirect's target has expired.
#[derive(Clone)]
pub struct RemoteBlob {
    pub(crate) locator: Arc<BlobLocator>,
}

impl RemoteBlob {
    /// Whether the location of the blob is known (which mirror, which redirect), so that the next
    /// request goes straight there.
    #[must_use]
    pub fn is_located(&self) -> bool {
        self.locator.is_located()
    }

    /// Streams one part of a download of the whole blob: with the retries of downloads, without a
    /// deadline. A server that asks to wait for longer than `longest_wait` has refused.
    ///
    /// # Errors
    /// As [`BlobSource::stream_range`].
    pub async fn stream_part(
        &self,
        range: Range<u64>,
        longest_wait: Duration,
    ) -> Result<ByteStream, RegistryError> {
        self.check(&range)?;
        let mut reader = RangeReader::new(Arc::clone(&self.locator), range, Deadline::far())
            .waiting_at_most(Some(longest_wait));
        reader.open().await?;
        Ok(reader.into_stream().boxed())
    }

    /// Compares the digest of all bytes that were streamed with the blob's. After a mismatch the
    /// location that served them is not preferred any more.
    ///
    /// # Errors
    /// [`RegistryError::DigestMismatch`].
    pub fn verify(&self, actual: Digest) -> Result<(), RegistryError> {
        whole_blob::verify(&self.locator, actual)
    }

    fn check(&self, range: &Range<u64>) -> Result<(), RegistryError> {
        if range.start <= range.end && range.end <= self.locator.size {
            return Ok(());
        }
        Err(RegistryError::OutOfRange {
            what: self.describe(),
            range: range.clone(),
            size: self.locator.size,
        })
    }
}

impl fmt::Debug for RemoteBlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RemoteBlob({})", self.describe())
    }
}

#[async_trait]
impl BlobSource for RemoteBlob {
    fn size(&self) -> u64 {
        self.locator.size
    }

    async fn stream_range(
        &self,
        range: Range<u64>,
        deadline: Deadline,
    ) -> Result<ByteStream, RegistryError> {
        self.check(&range)?;
        let mut reader = RangeReader::for_readers(Arc::clone(&self.locator), range, deadline);
        reader.open().await?;
        Ok(reader.into_stream().boxed())
    }

    async fn stream_range_giving_way(
        &self,
        range: Range<u64>,
        deadline: Deadline,
    ) -> Result<ByteStream, RegistryError> {
        self.check(&range)?;
        let locator = Arc::clone(&self.locator);
        let mut reader = RangeReader::for_readers(locator, range, deadline).giving_way();
        reader.open().await?;
        Ok(reader.into_stream().boxed())
    }

    fn ignores_ranges(&self) -> bool {
        self.locator.honours_ranges() == Some(false)
    }

    fn retry_count(&self) -> u64 {
        self.locator.retries.load(Ordering::Relaxed)
    }

    fn served_damage(&self) {
        self.locator.distrust_bytes();
    }

    fn describe(&self) -> String {
        self.locator.describe()
    }
}
