//! Moving a blob's bytes on a thread of its own: counted, checked, and stopped when asked to.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use soci_oci::{Descriptor, Digest, Hasher};

use crate::sink::BlobWriter;
use crate::source::SharedSource;
use crate::{IndexError, Progress};

/// Asks the threads that move bytes to stop. Clones share the request.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// A request that was not made yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the request.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Fails after [`Cancel::cancel`].
    pub(crate) fn check(&self) -> io::Result<()> {
        if self.0.load(Ordering::Relaxed) {
            // Not `Interrupted`, which readers take as a reason to continue.
            return Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "interrupted",
            ));
        }
        Ok(())
    }
}

/// Asks the threads to stop when the work is given up.
pub(crate) struct CancelOnDrop(pub(crate) Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Counts the bytes of one layer.
#[derive(Clone)]
pub struct TransferMeter {
    layer: Digest,
    progress: Arc<dyn Progress>,
    cancel: Cancel,
}

impl TransferMeter {
    /// A meter for one layer.
    pub(crate) fn new(layer: Digest, progress: Arc<dyn Progress>, cancel: Cancel) -> Self {
        Self {
            layer,
            progress,
            cancel,
        }
    }

    /// So many more bytes are done.
    pub(crate) fn add(&self, bytes: u64) {
        self.progress.advance(self.layer, bytes);
    }

    pub(crate) fn cancel(&self) -> Cancel {
        self.cancel.clone()
    }
}

/// Reads a blob, counts it, hands it to a writer too, and ends with an error if it is longer or
/// shorter than it should be.
pub(crate) struct Tee<'a> {
    pub(crate) reader: Box<dyn Read + Send>,
    pub(crate) writer: Option<Box<dyn BlobWriter>>,
    pub(crate) meter: &'a TransferMeter,
    /// Bytes that must still come.
    pub(crate) left: u64,
    /// Why the writer failed: a full disk is not the layer's fault.
    pub(crate) write_failure: Option<io::Error>,
}

impl Read for Tee<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.meter.cancel.check()?;
        let read = self.reader.read(buf)?;
        let Some(left) = self.left.checked_sub(read as u64) else {
            return Err(io::Error::other("it is longer than its descriptor says"));
        };
        if read == 0 && left > 0 && !buf.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("it ends {left} bytes before the size that its descriptor says"),
            ));
        }
        self.left = left;
        if let (Some(writer), Some(bytes)) = (&mut self.writer, buf.get(..read))
            && let Err(e) = writer.write_all(bytes)
        {
            let shown = io::Error::other("the destination cannot be written");
            self.write_failure = Some(e);
            return Err(shown);
        }
        self.meter.add(read as u64);
        Ok(read)
    }
}

/// Copies a blob from the source into a writer, size and digest checked.
pub(crate) async fn copy_into(
    writer: Box<dyn BlobWriter>,
    blob: &Descriptor,
    source: &SharedSource,
    meter: &TransferMeter,
) -> Result<(), IndexError> {
    let reader = source.open(blob).await?;
    let place = source.describe();
    let (blob, meter) = (blob.clone(), meter.clone());
    soci_task::blocking(move || {
        let mut tee = Tee {
            reader,
            writer: Some(writer),
            meter: &meter,
            left: blob.size,
            write_failure: None,
        };
        let mut hasher = Hasher::new();
        let copied = copy(&mut tee, &mut hasher);
        if let Err(source) = copied {
            return Err(IndexError::Blob {
                digest: blob.digest,
                place,
                source: tee.write_failure.unwrap_or(source),
            });
        }
        let found = hasher.finish();
        if found != blob.digest {
            return Err(IndexError::Digest {
                expected: blob.digest,
                found,
                place,
            });
        }
        tee.writer.map_or(Ok(()), BlobWriter::commit)
    })
    .await
}

/// `io::copy` with a buffer that suits hashing.
fn copy(reader: &mut impl Read, writer: &mut impl Write) -> io::Result<()> {
    let mut buf = vec![0; 256 << 10];
    loop {
        match reader.read(&mut buf) {
            Ok(0) => return Ok(()),
            Ok(read) => writer.write_all(buf.get(..read).unwrap_or_default())?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
