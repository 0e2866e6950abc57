//! A whole blob into a file, verified, in parallel ranges: for blobs that no memory should hold.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::BytesMut;
use futures::{StreamExt, TryStreamExt};
use soci_oci::{Descriptor, Digest, Hasher, Reference};

use crate::blob::Place;
use crate::reader::RangeReader;
use crate::whole::{AT_ONCE, PART, mismatch};
use crate::{Client, Deadline, RegistryError};

/// So much is collected before it is written.
const PIECE: usize = 1 << 20;

impl Client {
    /// Writes a whole blob into `file`, from its start, and verifies it. Large ones come in parallel
    /// ranges; memory does not grow with the blob. After an error the file holds anything.
    ///
    /// # Errors
    /// The blob does not exist or is not what its digest says, or the file cannot be written.
    pub async fn blob_to_file(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        file: Arc<File>,
    ) -> Result<(), RegistryError> {
        let blob = self.blob(reference, descriptor);
        let place = &blob.place;
        let mut backoff = self.shared.backoff(Deadline::far());
        loop {
            fill(place, &file).await?;
            let actual = digest_of(place, &file).await?;
            if actual == place.digest() {
                return Ok(());
            }
            let error = mismatch(place, actual);
            place.distrust(&error);
            backoff.wait_after(error).await?;
        }
    }
}

/// All bytes of a blob, not verified yet.
async fn fill(place: &Arc<Place>, file: &Arc<File>) -> Result<(), RegistryError> {
    let reader = |range| RangeReader::new(Arc::clone(place), range, Deadline::far());
    if place.size <= PART {
        return copy(place, reader(0..place.size), 0, file).await;
    }
    // The first part tells where the blob is and whether ranges are honoured.
    let mut first = reader(0..PART);
    first.open().await?;
    if place.honours_ranges() == Some(false) {
        drop(first);
        return copy(place, reader(0..place.size), 0, file).await;
    }
    let mut first = Some(first);
    let mut start = 0;
    let parts = std::iter::from_fn(|| {
        let end = place.size.min(start + PART);
        let part = (start < end).then(|| {
            let reader = first.take().unwrap_or_else(|| reader(start..end));
            copy(place, reader, start, file)
        });
        start = end;
        part
    });
    futures::stream::iter(parts)
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}

/// Writes what `reader` gives at `offset`.
async fn copy(
    place: &Place,
    mut reader: RangeReader,
    mut offset: u64,
    file: &Arc<File>,
) -> Result<(), RegistryError> {
    let mut collected = BytesMut::with_capacity(PIECE);
    loop {
        let bytes = reader.next().await.transpose()?;
        let ended = bytes.is_none();
        collected.extend_from_slice(&bytes.unwrap_or_default());
        if ended || collected.len() >= PIECE {
            let (mut piece, file) = (std::mem::take(&mut collected), Arc::clone(file));
            let length = piece.len() as u64;
            let written = tokio::task::spawn_blocking(move || {
                file.write_all_at(&piece, offset)?;
                piece.clear();
                Ok(piece)
            });
            collected = local(place, written).await?;
            offset += length;
        }
        if ended {
            return Ok(());
        }
    }
}

async fn digest_of(place: &Place, file: &Arc<File>) -> Result<Digest, RegistryError> {
    let (file, size) = (Arc::clone(file), place.size);
    let hashed = tokio::task::spawn_blocking(move || {
        let mut hasher = Hasher::new();
        let mut buffer = vec![0; PIECE];
        let mut offset = 0;
        while offset < size {
            let wanted = usize::try_from(size - offset).map_or(PIECE, |left| left.min(PIECE));
            let piece = buffer.get_mut(..wanted).unwrap_or_default();
            file.read_exact_at(piece, offset)?;
            hasher.update(piece);
            offset += wanted as u64;
        }
        Ok(hasher.finish())
    });
    local(place, hashed).await
}

/// The result of work on the file.
async fn local<T>(
    place: &Place,
    work: tokio::task::JoinHandle<std::io::Result<T>>,
) -> Result<T, RegistryError> {
    let failed = |reason: String| RegistryError::Sink {
        what: place.describe(),
        reason,
    };
    match work.await {
        Ok(done) => done.map_err(|error| failed(error.to_string())),
        Err(error) => Err(failed(error.to_string())),
    }
}
