//! A whole blob into a file, verified, in parallel ranges: for blobs that no memory should hold.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt};
use soci_oci::{Digest, Hasher};

use crate::blob_locator::BlobLocator;
use crate::range_reader::RangeReader;
use crate::whole_blob::{CONCURRENCY, Waits, parts, verify};
use crate::{Deadline, DownloadLimits, RegistryError};

/// Number of bytes that are collected before they are written.
const PIECE: usize = 1 << 20;

/// Writes a whole blob into `file`, from its start, and verifies it.
pub(crate) async fn fill(
    locator: &Arc<BlobLocator>,
    file: &Arc<File>,
    limits: Option<DownloadLimits>,
) -> Result<(), RegistryError> {
    let arrived = AtomicU64::new(0);
    let waits = Waits {
        longest: limits.map(|limits| limits.period),
        patience: None,
    };
    let mut backoff = locator.engine.backoff(Deadline::far());
    loop {
        let download = Box::pin(async {
            let writes = parts(locator, waits)
                .await?
                .map(|(offset, reader)| copy(locator, reader, offset, file, &arrived));
            futures::stream::iter(writes)
                .buffer_unordered(CONCURRENCY)
                .try_collect::<()>()
                .await
        });
        match &limits {
            None => download.await?,
            Some(limits) => {
                arrived.store(0, Ordering::Relaxed);
                limits
                    .watch(|| locator.describe(), &arrived, download)
                    .await?;
            }
        }
        match verify(locator, digest_of(locator, file).await?) {
            Ok(()) => return Ok(()),
            Err(error) => backoff.wait_after(error).await?,
        }
    }
}

/// Writes the bytes of `reader` at `offset`.
async fn copy(
    locator: &BlobLocator,
    mut reader: RangeReader,
    mut offset: u64,
    file: &Arc<File>,
    arrived: &AtomicU64,
) -> Result<(), RegistryError> {
    let mut collected = BytesMut::with_capacity(PIECE);
    loop {
        let bytes = reader.next().await.transpose()?;
        let ended = bytes.is_none();
        let length = bytes.as_ref().map_or(0, Bytes::len) as u64;
        arrived.fetch_add(length, Ordering::Relaxed);
        collected.extend_from_slice(&bytes.unwrap_or_default());
        if ended || collected.len() >= PIECE {
            let (mut piece, file) = (std::mem::take(&mut collected), Arc::clone(file));
            let length = piece.len() as u64;
            collected = on_file(locator, move || {
                file.write_all_at(&piece, offset)?;
                piece.clear();
                Ok(piece)
            })
            .await?;
            offset += length;
        }
        if ended {
            return Ok(());
        }
    }
}

async fn digest_of(locator: &BlobLocator, file: &Arc<File>) -> Result<Digest, RegistryError> {
    let (file, size) = (Arc::clone(file), locator.size);
    on_file(locator, move || {
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
    })
    .await
}

/// Performs blocking work on the file.
async fn on_file<T: Send + 'static>(
    locator: &BlobLocator,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, RegistryError> {
    soci_task::blocking(work)
        .await
        .map_err(|error| RegistryError::Sink {
            what: locator.describe(),
            reason: error.to_string(),
        })
}
