//! What is uploaded: it can be read again from the start when an upload is interrupted.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::BoxStream;

/// Opens the body anew, at its start.
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
    /// A body that `open` opens at its start each time.
    pub fn stream(
        open: impl Fn() -> BoxStream<'static, std::io::Result<Bytes>> + Send + Sync + 'static,
    ) -> Self {
        Self::Stream(Arc::new(open))
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
