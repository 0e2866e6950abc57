//! What is asked of the pipeline, and what it returns.

use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;

use soci_oci::{Descriptor, Digest};
use soci_registry::{Deadline, RemoteBlob};

use super::progress::{LayerProgress, StageTimings};
use crate::ApplyOptions;
use crate::apply::settle::ImpliedDirectories;

/// Where a compressed layer comes from.
pub enum LayerBlob {
    /// A registry, in ranged requests.
    Remote(RemoteBlob),
    /// This machine, in order: containerd's content store.
    Local(Box<dyn Read + Send>),
}

/// Receives the compressed bytes of a layer in order, on a thread of its own, which it may block. An
/// error fails the layer.
pub trait CompressedSink: Send {
    /// Receives the next bytes.
    ///
    /// # Errors
    /// They cannot be stored.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Forgets all bytes: they were damaged, and come again.
    ///
    /// # Errors
    /// It is not possible to start over.
    fn restart(&mut self) -> io::Result<()>;

    /// Keeps the bytes: both digests are right. It is not called if the layer fails.
    ///
    /// # Errors
    /// They cannot be stored.
    fn finish(&mut self, diff_id: &Digest) -> io::Result<()>;
}

/// A layer to unpack.
pub struct PipelineRequest {
    /// Where it comes from.
    pub blob: LayerBlob,
    /// Its digest and size. The first bytes, not the media type, decide how it is compressed, as for
    /// containerd.
    pub descriptor: Descriptor,
    /// The digest that its uncompressed bytes must have.
    pub diff_id: Digest,
    /// Its position in the image from below: lower layers come first.
    pub order: usize,
    /// An existing, empty directory.
    pub directory: PathBuf,
    /// How it is applied. Layers below that are not complete yet are left out here, and given to
    /// [`ImpliedDirectories::settle`] later.
    pub options: ApplyOptions,
    /// Receives the compressed bytes.
    pub store: Option<Box<dyn CompressedSink>>,
    /// Counts what is done.
    pub progress: Arc<LayerProgress>,
    /// When the first byte must have come; `None`: some time after the first request, however long that
    /// has waited.
    pub first_byte: Option<Deadline>,
}

/// A layer that was unpacked.
#[derive(Debug)]
pub struct UnpackedLayer {
    /// Bytes of the compressed layer.
    pub compressed_size: u64,
    /// Bytes of its tar.
    pub uncompressed_size: u64,
    /// The digest of its tar.
    pub diff_id: Digest,
    /// Directories that may look different in the layers below.
    pub implied: ImpliedDirectories,
    /// How long the parts of the work took.
    pub timings: StageTimings,
}
