//! Bodies of uploads, which can be read again from the start after an interruption.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use parking_lot::Mutex;
use tokio_util::io::ReaderStream;

use crate::RegistryError;

/// Bytes per read of a file.
const PIECE: usize = 256 << 10;

/// Opens a body at its start.
type Factory = dyn Fn() -> BoxStream<'static, std::io::Result<Bytes>> + Send + Sync;

/// The bytes of a blob to upload, readable as often as needed.
#[derive(Clone)]
pub enum BlobBody {
    /// Bytes in memory.
    Bytes(Bytes),
    /// A file.
    File(PathBuf),
    /// A stream that can be opened again.
    Stream(Arc<Factory>),
}

impl BlobBody {
    /// Creates a body that `open` opens at its start each time.
    pub fn stream(
        open: impl Fn() -> BoxStream<'static, std::io::Result<Bytes>> + Send + Sync + 'static,
    ) -> Self {
        Self::Stream(Arc::new(open))
    }
}

/// Progress and failure of a body that is being sent.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    /// Number of bytes handed to the connection.
    pub(crate) sent: AtomicU64,
    failure: Mutex<Option<RegistryError>>,
}

impl Meter {
    pub(crate) fn shared() -> Arc<Self> {
        Arc::default()
    }

    /// Removes and returns the error of reading the body, if that ended the request.
    pub(crate) fn take_failure(&self) -> Option<RegistryError> {
        self.failure.lock().take()
    }
}

impl BlobBody {
    /// Opens the body at its start. The stream fails if it is not exactly `size` bytes long.
    pub(crate) async fn open(
        &self,
        size: u64,
        meter: &Arc<Meter>,
    ) -> Result<BoxStream<'static, std::io::Result<Bytes>>, RegistryError> {
        let what = format!("{self:?}");
        let unreadable = move |source: Arc<std::io::Error>| RegistryError::Source {
            what: what.clone(),
            source,
        };
        let stream = match self {
            Self::Bytes(bytes) => {
                let mut bytes = bytes.clone();
                let pieces = std::iter::from_fn(move || {
                    let piece = bytes.split_to(PIECE.min(bytes.len()));
                    (!piece.is_empty()).then_some(Ok(piece))
                });
                futures::stream::iter(pieces).boxed()
            }
            Self::File(path) => {
                let file = tokio::fs::File::open(path)
                    .await
                    .map_err(|error| unreadable(Arc::new(error)))?;
                ReaderStream::with_capacity(file, PIECE).boxed()
            }
            Self::Stream(open) => open(),
        };
        let end = futures::stream::once(async { Ok(Bytes::new()) });
        let (meter, failed) = (Arc::clone(meter), Arc::clone(meter));
        let mut seen = 0_u64;
        Ok(stream
            .chain(end)
            .and_then(move |piece| {
                seen = seen.saturating_add(piece.len() as u64);
                let wrong = seen > size || (piece.is_empty() && seen != size);
                futures::future::ready(if wrong {
                    Err(std::io::Error::other(format!(
                        "it holds {} than the {size} bytes announced",
                        if seen > size { "more" } else { "less" }
                    )))
                } else {
                    Ok(piece)
                })
            })
            .try_filter(|piece| futures::future::ready(!piece.is_empty()))
            .inspect_ok(move |piece| {
                meter.sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
            })
            .map_err(move |error| {
                let error = Arc::new(error);
                *failed.failure.lock() = Some(unreadable(Arc::clone(&error)));
                std::io::Error::other(error)
            })
            .boxed())
    }
}

impl From<Bytes> for BlobBody {
    fn from(bytes: Bytes) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<Vec<u8>> for BlobBody {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes.into())
    }
}

impl From<PathBuf> for BlobBody {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

impl fmt::Debug for BlobBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "Bytes({} bytes)", bytes.len()),
            Self::File(path) => write!(f, "File({})", path.display()),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}
