//! One blob at a registry, as a [`BlobSource`].

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use futures::StreamExt;

use crate::blob_locator::BlobLocator;
use crate::range_reader::RangeReader;
use crate::source::ByteStream;
use crate::{BlobSource, Deadline, RegistryError};

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
        if range.start > range.end || range.end > self.locator.size {
            return Err(RegistryError::OutOfRange {
                what: self.describe(),
                range,
                size: self.locator.size,
            });
        }
        let mut reader = RangeReader::for_readers(Arc::clone(&self.locator), range, deadline);
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
