//! Whole blobs, verified: into memory in parallel ranges, or as a stream in order.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt};
use soci_oci::{Descriptor, Digest, Hasher, Reference};

use crate::blob::Place;
use crate::reader::RangeReader;
use crate::source::ByteStream;
use crate::{Client, Deadline, RegistryError};

/// Bytes per request of a large blob.
pub(crate) const PART: u64 = 8 << 20;
/// Requests at once for one blob.
pub(crate) const AT_ONCE: usize = 4;
/// Hashing more than this in one go would hold up other tasks.
const HASH_INLINE: usize = 256 << 10;

impl Client {
    /// A whole blob, verified; large ones come in parallel ranges. The caller judges
    /// `descriptor.size` before; [`crate::ClientConfig::max_blob_in_memory`] is the last resort.
    ///
    /// # Errors
    /// It does not exist or is not what its digest says.
    pub async fn blob_bytes(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
    ) -> Result<Bytes, RegistryError> {
        let blob = self.blob(reference, descriptor);
        let place = &blob.place;
        let limit = self.shared.config().max_blob_in_memory;
        if place.size > limit {
            return Err(RegistryError::TooLarge {
                what: place.describe(),
                limit,
            });
        }
        let mut backoff = self.shared.backoff(Deadline::far());
        loop {
            let bytes = gather(place).await?;
            let actual = digest_of(&bytes).await;
            if actual == place.digest() {
                return Ok(bytes);
            }
            let error = mismatch(place, actual);
            place.distrust(&error);
            backoff.wait_after(error).await?;
        }
    }

    /// A whole blob in order, resumed where it breaks off. The last item is an error if the
    /// digest is wrong: what came before must not be used until the stream has ended well.
    ///
    /// # Errors
    /// It does not exist or the registry does not give it.
    pub async fn blob_stream(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
    ) -> Result<ByteStream, RegistryError> {
        let place = self.blob(reference, descriptor).place;
        let mut reader = RangeReader::new(Arc::clone(&place), 0..place.size, Deadline::far());
        reader.open().await?;
        let state = (reader, Some(Hasher::new()), place);
        let stream = futures::stream::unfold(state, |(mut reader, hasher, place)| async {
            // No hasher: an error has been given, or the digest has been checked.
            let mut hasher = hasher?;
            match reader.next().await {
                Some(Ok(bytes)) => {
                    hasher.update(&bytes);
                    Some((Ok(bytes), (reader, Some(hasher), place)))
                }
                Some(Err(error)) => Some((Err(error), (reader, None, place))),
                None => {
                    let actual = hasher.finish();
                    if actual == place.digest() {
                        return None;
                    }
                    let error = mismatch(&place, actual);
                    place.distrust(&error);
                    Some((Err(error), (reader, None, place)))
                }
            }
        });
        Ok(stream.boxed())
    }
}

pub(crate) fn mismatch(place: &Place, actual: Digest) -> RegistryError {
    RegistryError::DigestMismatch {
        what: place.describe(),
        expected: place.digest(),
        actual,
    }
}

async fn digest_of(bytes: &Bytes) -> Digest {
    if bytes.len() > HASH_INLINE {
        let shared = bytes.clone();
        if let Ok(digest) = tokio::task::spawn_blocking(move || Digest::of(&shared)).await {
            return digest;
        }
    }
    Digest::of(bytes)
}

/// All bytes of a blob, not verified yet.
async fn gather(place: &Arc<Place>) -> Result<Bytes, RegistryError> {
    let reader = |range| RangeReader::new(Arc::clone(place), range, Deadline::far());
    let too_large = || RegistryError::TooLarge {
        what: place.describe(),
        limit: usize::MAX as u64,
    };
    let size = usize::try_from(place.size).map_err(|_| too_large())?;
    if place.size <= PART {
        return read(reader(0..place.size), BytesMut::zeroed(size))
            .await
            .map(BytesMut::freeze);
    }
    // The first part tells where the blob is and whether ranges are honoured.
    let mut first = reader(0..PART);
    first.open().await?;
    if place.honours_ranges() == Some(false) {
        drop(first);
        return read(reader(0..place.size), BytesMut::zeroed(size))
            .await
            .map(BytesMut::freeze);
    }
    let mut buffer = BytesMut::zeroed(size);
    let mut parts = Vec::new();
    let mut first = Some(first);
    let mut start = 0;
    while start < place.size {
        let end = place.size.min(start + PART);
        let length = usize::try_from(end - start).map_err(|_| too_large())?;
        let reader = first.take().unwrap_or_else(|| reader(start..end));
        parts.push(read(reader, buffer.split_to(length)));
        start = end;
    }
    let parts: Vec<BytesMut> = futures::stream::iter(parts)
        .buffered(AT_ONCE)
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

/// Reads exactly as many bytes as `into` is long, which is what `reader` gives.
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
