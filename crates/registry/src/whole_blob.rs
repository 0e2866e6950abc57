//! Whole blobs, verified: into memory in parallel ranges, or as a stream in order.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt};
use soci_oci::{Digest, Hasher};

use crate::blob_locator::BlobLocator;
use crate::range_reader::RangeReader;
use crate::source::ByteStream;
use crate::{Deadline, RegistryError};

/// Bytes per request of a large blob.
const PART: u64 = 8 << 20;
/// Concurrent requests for one blob.
pub(crate) const CONCURRENCY: usize = 4;
/// Hashing more bytes than this inline would hold up other tasks.
const HASH_INLINE: usize = 256 << 10;

/// Reads a whole blob into memory.
pub(crate) async fn bytes(locator: &Arc<BlobLocator>) -> Result<Bytes, RegistryError> {
    let limit = locator.engine.config().max_blob_in_memory;
    if locator.size > limit {
        return Err(RegistryError::TooLarge {
            what: locator.describe(),
            limit,
        });
    }
    let mut backoff = locator.engine.backoff(Deadline::far());
    loop {
        let bytes = gather(locator).await?;
        match verify(locator, digest_of(&bytes).await) {
            Ok(()) => return Ok(bytes),
            Err(error) => backoff.wait_after(error).await?,
        }
    }
}

/// Streams a whole blob in order. The last item is an error if the digest is wrong.
pub(crate) async fn stream(locator: Arc<BlobLocator>) -> Result<ByteStream, RegistryError> {
    let mut reader = RangeReader::new(Arc::clone(&locator), 0..locator.size, Deadline::far());
    reader.open().await?;
    let state = (reader, Some(Hasher::new()), locator);
    let stream = futures::stream::unfold(state, |(mut reader, hasher, locator)| async {
        // No hasher: an error was the last item, or the digest has been checked.
        let mut hasher = hasher?;
        match reader.next().await {
            Some(Ok(bytes)) => {
                hasher.update(&bytes);
                Some((Ok(bytes), (reader, Some(hasher), locator)))
            }
            Some(Err(error)) => Some((Err(error), (reader, None, locator))),
            None => {
                let error = verify(&locator, hasher.finish()).err()?;
                Some((Err(error), (reader, None, locator)))
            }
        }
    });
    Ok(stream.boxed())
}

/// Compares the digest of what was read with the blob's. On a mismatch the location is forgotten.
pub(crate) fn verify(locator: &BlobLocator, actual: Digest) -> Result<(), RegistryError> {
    if actual == locator.digest {
        return Ok(());
    }
    let error = RegistryError::DigestMismatch {
        what: locator.describe(),
        expected: locator.digest,
        actual,
    };
    locator.distrust(&error);
    Err(error)
}

/// What ends the retries of the parts of a blob, beside their number.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Waits {
    /// A server's request to wait for longer is its answer.
    pub(crate) longest: Option<Duration>,
    /// Longest time without progress.
    pub(crate) patience: Option<Duration>,
}

/// Splits a blob into ranged reads, each with the offset of its first byte: a single one if the
/// blob is small or its host ignores ranges.
pub(crate) async fn parts(
    locator: &Arc<BlobLocator>,
    waits: Waits,
) -> Result<impl Iterator<Item = (u64, RangeReader)> + Send, RegistryError> {
    let reader = move |locator: &Arc<BlobLocator>, range| {
        RangeReader::new(Arc::clone(locator), range, Deadline::far())
            .waiting_at_most(waits.longest)
            .patient_for(waits.patience)
    };
    let size = locator.size;
    let mut first = reader(locator, 0..PART.min(size));
    let mut step = PART;
    if size > PART {
        // The first part shows where the blob is and whether ranges are honoured.
        first.open().await?;
        if locator.honours_ranges() == Some(false) {
            first = reader(locator, 0..size);
            step = size;
        }
    }
    let (mut first, mut start) = (Some(first), 0_u64);
    let locator = Arc::clone(locator);
    Ok(std::iter::from_fn(move || {
        let rest = start..size.min(start.saturating_add(step));
        let part = first.take().or_else(|| {
            let more = !rest.is_empty();
            more.then(|| reader(&locator, rest.clone()))
        })?;
        start = rest.end;
        Some((rest.start, part))
    }))
}

async fn digest_of(bytes: &Bytes) -> Digest {
    if bytes.len() > HASH_INLINE {
        let shared = bytes.clone();
        if let Ok(digest) = soci_task::run(move || Digest::of(&shared)).await {
            return digest;
        }
    }
    Digest::of(bytes)
}

/// Reads all bytes of a blob, not verified yet.
async fn gather(locator: &Arc<BlobLocator>) -> Result<Bytes, RegistryError> {
    let size = usize::try_from(locator.size).map_err(|_| RegistryError::TooLarge {
        what: locator.describe(),
        limit: usize::MAX as u64,
    })?;
    let mut buffer = BytesMut::zeroed(size);
    let waits = Waits {
        longest: None,
        patience: locator.engine.config().document_patience,
    };
    let reads: Vec<_> = parts(locator, waits)
        .await?
        .map(|(_, reader)| {
            let length = usize::try_from(reader.remaining()).unwrap_or(usize::MAX);
            read(reader, buffer.split_to(length.min(buffer.len())))
        })
        .collect();
    let parts: Vec<BytesMut> = futures::stream::iter(reads)
        .buffered(CONCURRENCY)
        .try_collect()
        .await?;
    let mut parts = parts.into_iter();
    let mut whole = parts.next().unwrap_or_default();
    for part in parts {
        // They were split off one buffer: joined without copying.
        whole.unsplit(part);
    }
    Ok(whole.freeze())
}

/// Fills `into`, which is as long as the range of `reader`.
async fn read(mut reader: RangeReader, mut into: BytesMut) -> Result<BytesMut, RegistryError> {
    let mut filled = 0;
    while let Some(bytes) = reader.next().await.transpose()? {
        if let Some(space) = into.get_mut(filled..filled + bytes.len()) {
            space.copy_from_slice(&bytes);
        }
        filled += bytes.len();
    }
    Ok(into)
}
